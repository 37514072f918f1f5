//! Optimization profiles: the shapes for which TensorRT builds an engine, in the syntax of its providers' options.

use crate::runtime::ProfiledInput;

/// The minimum, optimal and maximum shapes, each as `name:1x2x3,other:4x5`. Inputs are in the order of their names, so
/// that equal profiles have equal text; empty if no input has a dynamic dimension.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Profile {
    /// Minimum shapes.
    pub min: String,
    /// Shapes that the engine is tuned for.
    pub opt: String,
    /// Maximum shapes.
    pub max: String,
}

impl Profile {
    /// The profile of `inputs`.
    ///
    /// # Errors
    /// What is wrong with an input: a name that is empty or holds a separator, shapes of different rank, or min > opt
    /// or opt > max.
    pub fn of(inputs: &[ProfiledInput]) -> Result<Self, String> {
        let mut inputs: Vec<&ProfiledInput> = inputs.iter().collect();
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        for input in &inputs {
            check(input)?;
        }
        if let Some(pair) = inputs.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(format!("input `{}` has two profiles", pair[0].name));
        }
        let all = |shape: fn(&ProfiledInput) -> &[u64]| {
            let one = |input: &&ProfiledInput| {
                let dimensions: Vec<String> = shape(input).iter().map(u64::to_string).collect();
                format!("{}:{}", input.name, dimensions.join("x"))
            };
            inputs.iter().map(one).collect::<Vec<_>>().join(",")
        };
        Ok(Self { min: all(|i| &i.min), opt: all(|i| &i.opt), max: all(|i| &i.max) })
    }

    /// Whether there is no dynamic dimension.
    pub fn is_empty(&self) -> bool {
        self.min.is_empty()
    }
}

fn check(input: &ProfiledInput) -> Result<(), String> {
    let ProfiledInput { name, min, opt, max } = input;
    if name.is_empty() || name.contains([':', ',', ';']) {
        return Err(format!("`{name}` cannot be an input's name in a profile"));
    }
    let ordered = min.iter().zip(opt).zip(max).all(|((min, opt), max)| 1 <= *min && min <= opt && opt <= max);
    if min.is_empty() || min.len() != opt.len() || opt.len() != max.len() || !ordered {
        let [min, opt, max] =
            [min, opt, max].map(|shape| shape.iter().map(u64::to_string).collect::<Vec<_>>().join("x"));
        return Err(format!("the shapes of input `{name}` are not in order: {min} ≤ {opt} ≤ {max}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, min: &[u64], opt: &[u64], max: &[u64]) -> ProfiledInput {
        ProfiledInput { name: name.to_owned(), min: min.to_vec(), opt: opt.to_vec(), max: max.to_vec() }
    }

    #[test]
    fn spelled_as_the_providers_read_it() {
        let mask = input("attention_mask", &[1, 1], &[1, 256], &[2, 512]);
        let ids = input("input_ids", &[1, 1], &[1, 256], &[2, 512]);
        let expected = Profile {
            min: "attention_mask:1x1,input_ids:1x1".to_owned(),
            opt: "attention_mask:1x256,input_ids:1x256".to_owned(),
            max: "attention_mask:2x512,input_ids:2x512".to_owned(),
        };
        assert_eq!(Profile::of(&[ids.clone(), mask.clone()]), Ok(expected.clone()));
        assert_eq!(Profile::of(&[mask, ids]), Ok(expected));
        let volume = input("volume", &[1, 1, 64, 256, 256], &[1, 1, 64, 256, 256], &[1, 1, 64, 256, 256]);
        assert_eq!(Profile::of(&[volume]).map(|p| p.max), Ok("volume:1x1x64x256x256".to_owned()));
        assert_eq!(Profile::of(&[]).map(|p| p.is_empty()), Ok(true));
    }

    #[test]
    fn wrong_ones_are_refused() {
        let bad = [
            vec![input("", &[1], &[1], &[1])],
            vec![input("a:b", &[1], &[1], &[1])],
            vec![input("a,b", &[1], &[1], &[1])],
            vec![input("a", &[], &[], &[])],
            vec![input("a", &[1], &[1, 2], &[1, 2])],
            vec![input("a", &[0], &[1], &[1])],
            vec![input("a", &[2], &[1], &[3])],
            vec![input("a", &[1], &[4], &[3])],
            vec![input("a", &[1], &[1], &[1]), input("a", &[1], &[1], &[1])],
        ];
        for inputs in bad {
            Profile::of(&inputs).expect_err(&format!("{inputs:?}"));
        }
    }
}
