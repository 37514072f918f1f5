//! Which GPUs CUDA sees, and in which order: the variables `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`.
//!
//! The driver's NVML ignores both. It lists all GPUs in the order of the PCI bus; CUDA lists those that the first
//! variable names, in its order, and counts them fastest first unless the second is `PCI_BUS_ID`. The GPU that is
//! reported, and whose free memory is counted, must be CUDA's device 0. Source: CUDA Programming Guide, appendix "CUDA
//! Environment Variables".

use super::Gpu;

/// The two variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Enumeration {
    /// `CUDA_VISIBLE_DEVICES`, where it is set.
    pub visible: Option<String>,
    /// Whether `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`.
    pub by_bus: bool,
}

impl Enumeration {
    /// Of this process's environment.
    pub fn of_this_process() -> Self {
        let text = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            visible: text("CUDA_VISIBLE_DEVICES"),
            by_bus: text("CUDA_DEVICE_ORDER").as_deref() == Some("PCI_BUS_ID"),
        }
    }
}

/// The GPUs that CUDA sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VisibleGpus {
    /// Indices into the driver's list, in CUDA's order; at least one.
    pub indices: Vec<usize>,
    /// What is uncertain about the first.
    pub note: Option<String>,
}

/// The GPUs of `all`, the driver's list, that CUDA sees.
pub(super) fn visible_gpus(all: &[Gpu], enumeration: &Enumeration) -> Result<VisibleGpus, String> {
    // GPUs of one model are equally fast: CUDA then lists them in the bus's order too.
    let same_order = enumeration.by_bus || all.iter().all(|gpu| gpu.name == all[0].name);
    let mut by_index = enumeration.visible.is_none();
    let mut instance = None;
    let indices: Vec<usize> = match &enumeration.visible {
        None => (0..all.len()).collect(),
        Some(list) => {
            let mut found: Vec<usize> = Vec::new();
            // CUDA ignores all that follows the first invalid entry.
            for item in list.split(',').map(str::trim) {
                let index = match item.parse::<usize>() {
                    Ok(index) => {
                        by_index |= found.is_empty();
                        Some(index).filter(|i| *i < all.len())
                    }
                    Err(_) if item.starts_with("MIG-") => {
                        instance = instance.or_else(|| found.is_empty().then_some(item));
                        Some(0)
                    }
                    Err(_) => by_uuid(all, item),
                };
                match index.filter(|i| !found.contains(i)) {
                    Some(index) => found.push(index),
                    None => break,
                }
            }
            found
        }
    };
    if indices.is_empty() {
        let list = enumeration.visible.as_deref().unwrap_or_default();
        return Err(format!(
            "CUDA_VISIBLE_DEVICES is `{list}`, which hides every GPU (there are {}, the first is {} {}): unset it, or \
             name one",
            all.len(),
            all[0].name,
            all[0].uuid
        ));
    }
    let note = match instance {
        Some(item) => Some(format!(
            "CUDA_VISIBLE_DEVICES names a part of a GPU, {item}: name and memory are those of a whole GPU, {}",
            all[indices[0]].name
        )),
        None if by_index && !same_order => Some(format!(
            "the GPUs differ and CUDA counts the fastest first: it may use another than {}; set \
             CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU in CUDA_VISIBLE_DEVICES by its UUID",
            all[indices[0]].name
        )),
        None => None,
    };
    Ok(VisibleGpus { indices, note })
}

/// The only GPU whose UUID has this beginning.
fn by_uuid(all: &[Gpu], beginning: &str) -> Option<usize> {
    let mut matching = all.iter().enumerate().filter(|(_, gpu)| gpu.uuid.starts_with(beginning)).map(|(i, _)| i);
    matching.next().filter(|_| beginning.starts_with("GPU-") && matching.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(names: &[&str]) -> Vec<Gpu> {
        let gpu = |(i, name): (usize, &&str)| Gpu {
            name: (*name).to_owned(),
            capability: (8, 6),
            memory: 1,
            free: 1,
            uuid: format!("GPU-{i}a0{}-0000", i * 7),
        };
        names.iter().enumerate().map(gpu).collect()
    }

    fn visible(names: &[&str], list: Option<&str>, by_bus: bool) -> Result<(Vec<usize>, bool), String> {
        let enumeration = Enumeration { visible: list.map(str::to_owned), by_bus };
        visible_gpus(&gpus(names), &enumeration).map(|gpus| (gpus.indices, gpus.note.is_some()))
    }

    /// The examples of the CUDA Programming Guide, and what it says of UUIDs.
    #[test]
    fn as_the_programming_guide_says() {
        let four = ["A"; 4];
        let cases: [(Option<&str>, &[usize]); 11] = [
            (None, &[0, 1, 2, 3]),
            (Some("2,1"), &[2, 1]),
            (Some("0,2,-1,1"), &[0, 2]),
            (Some("0,2,9,1"), &[0, 2]),
            (Some(" 3 , 0"), &[3, 0]),
            (Some("GPU-2a014-0000"), &[2]),
            (Some("GPU-2"), &[2]),
            (Some("GPU-3,GPU-0"), &[3, 0]),
            (Some("1,GPU-9,0"), &[1]),
            (Some("1,NoDevFiles"), &[1]),
            (Some("1,1,2"), &[1]),
        ];
        for (list, expected) in cases {
            assert_eq!(visible(&four, list, false), Ok((expected.to_vec(), false)), "{list:?}");
        }
        // Ambiguous, unknown, empty, none.
        for list in ["GPU-", "GPU-9", "", "-1", "NoDevFiles", "7", "2a014"] {
            let error = visible(&four, Some(list), false).expect_err(list);
            assert!(error.contains(&format!("`{list}`")) && error.contains("GPU-0a00-0000"), "{error}");
        }
    }

    #[test]
    fn an_uncertain_order_is_reported() {
        let mixed = ["RTX 4000", "RTX 6000"];
        let cases = [
            (None, false, true),
            (None, true, false),
            (Some("1"), false, true),
            (Some("1"), true, false),
            (Some("GPU-1"), false, false),
            (Some("MIG-5c8e"), true, true),
        ];
        for (list, by_bus, expected) in cases {
            assert_eq!(
                visible(&mixed, list, by_bus).map(|(_, uncertain)| uncertain),
                Ok(expected),
                "{list:?} {by_bus}"
            );
        }
        assert_eq!(visible(&["RTX 4000"; 2], None, false).map(|(_, uncertain)| uncertain), Ok(false));
    }
}
