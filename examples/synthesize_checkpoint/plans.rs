//! Which tensors there are: names, shapes and the distributions of their values.

use brain_adapter::tensor::DType;

use super::Preset;

/// The classifier's labels.
pub const LABELS: [&str; 3] = ["CN", "MCI", "AD"];

/// The sizes that differ between presets.
pub struct Sizes {
    pub size: usize,
    pub depth: usize,
    pub img: [usize; 3],
    pub patch: [usize; 3],
    pub vit: [usize; 4],
    pub projection: usize,
    pub llama: Llama,
}

pub struct Llama {
    pub hidden: usize,
    pub mlp: usize,
    pub layers: usize,
    pub heads: usize,
    pub vocab: usize,
    pub shards: usize,
}

impl Preset {
    /// The preset's sizes.
    pub fn sizes(self) -> Sizes {
        let small = |hidden, mlp| Llama { hidden, mlp, layers: 2, heads: 4, vocab: 512, shards: 2 };
        let full = |llama| Sizes {
            size: 256,
            depth: 64,
            img: [32, 256, 256],
            patch: [4, 16, 16],
            vit: [768, 3072, 12, 12],
            projection: 768,
            llama,
        };
        let tiny = |vit, projection, llama| Sizes {
            size: 32,
            depth: 8,
            img: [4, 32, 32],
            patch: [2, 8, 8],
            vit,
            projection,
            llama,
        };
        match self {
            Self::Tiny => tiny([48, 96, 2, 3], 40, small(64, 176)),
            // What the trained heads see of the full size.
            Self::Heads => {
                let llama = Llama { hidden: 4096, mlp: 176, layers: 1, heads: 32, vocab: 512, shards: 1 };
                tiny([768, 96, 1, 12], 768, llama)
            }
            Self::Vit => full(small(256, 688)),
            Self::Full => full(Llama { hidden: 4096, mlp: 11008, layers: 32, heads: 32, vocab: 32000, shards: 3 }),
        }
    }
}

/// How a tensor's values are drawn.
#[derive(Clone, Copy)]
pub enum Draw {
    Normal(f32, f32),
    Uniform(f32, f32),
    Exactly(f32),
}

/// A tensor to be: a name, a shape, a distribution.
pub struct Plan {
    pub name: String,
    pub shape: Vec<usize>,
    pub draw: Draw,
}

impl Plan {
    /// Size in bytes.
    pub fn bytes(&self, dtype: DType) -> u64 {
        self.shape.iter().product::<usize>() as u64 * dtype.size() as u64
    }
}

fn plan(name: impl Into<String>, shape: &[usize], draw: Draw) -> Plan {
    Plan { name: name.into(), shape: shape.to_vec(), draw }
}

/// Weights whose products keep the scale of what they multiply, times `gain`.
fn scaled(gain: f32, fan_in: usize) -> Draw {
    Draw::Normal(0.0, gain / (fan_in as f32).sqrt())
}

/// The adapter, the projections and the classifiers; `num_batches_tracked` apart.
pub fn adapter(s: &Sizes) -> Vec<Plan> {
    let mut plans = Vec::new();
    for (conv, norm, inputs, kernel) in [
        ("reduce.conv", "reduce.norm", s.size, 1),
        ("residual.conv1", "residual.norm1", s.depth, 3),
        ("residual.conv2", "residual.norm2", s.depth, 3),
    ] {
        let draw = scaled(1.4, inputs * kernel * kernel);
        plans.push(plan(format!("adapter.{conv}.weight"), &[s.depth, inputs, kernel, kernel], draw));
        for (what, draw) in [
            ("weight", Draw::Normal(1.0, 0.1)),
            ("bias", Draw::Normal(0.0, 0.1)),
            ("running_mean", Draw::Normal(0.0, 0.2)),
            ("running_var", Draw::Uniform(0.3, 1.5)),
        ] {
            plans.push(plan(format!("adapter.{norm}.{what}"), &[s.depth], draw));
        }
    }
    let d = s.projection;
    for (name, outputs, inputs) in [
        ("vision_projection", d, s.vit[0]),
        ("text_projection", d, s.llama.hidden),
        ("classifier", LABELS.len(), 2 * d),
        ("image_classifier", LABELS.len(), d),
    ] {
        plans.push(plan(format!("{name}.weight"), &[outputs, inputs], scaled(1.0, inputs)));
        plans.push(plan(format!("{name}.bias"), &[outputs], Draw::Normal(0.0, 0.02)));
    }
    // CLIP's starting temperature: ln(1 / 0.07).
    plans.push(plan("logit_scale", &[], Draw::Exactly(2.659_26)));
    plans
}

/// M3D's ViT, without a prefix.
pub fn vision(s: &Sizes) -> Vec<Plan> {
    let [hidden, mlp, layers, _] = s.vit;
    let patch: usize = s.patch.iter().product();
    let tokens: usize = s.img.iter().zip(&s.patch).map(|(i, p)| i / p).product();
    let bias = Draw::Normal(0.0, 0.02);
    let mut plans = vec![
        plan("patch_embedding.patch_embeddings.1.weight", &[hidden, patch], scaled(1.0, patch)),
        plan("patch_embedding.patch_embeddings.1.bias", &[hidden], bias),
        plan("patch_embedding.position_embeddings", &[1, tokens, hidden], Draw::Normal(0.0, 0.02)),
        plan("cls_token", &[1, 1, hidden], Draw::Normal(0.0, 0.02)),
    ];
    let norm = |plans: &mut Vec<Plan>, name: String| {
        plans.push(plan(format!("{name}.weight"), &[hidden], Draw::Normal(1.0, 0.1)));
        plans.push(plan(format!("{name}.bias"), &[hidden], Draw::Normal(0.0, 0.05)));
    };
    for n in 0..layers {
        norm(&mut plans, format!("blocks.{n}.norm1"));
        norm(&mut plans, format!("blocks.{n}.norm2"));
        plans.push(plan(format!("blocks.{n}.attn.qkv.weight"), &[3 * hidden, hidden], scaled(1.2, hidden)));
        for (name, outputs, inputs) in
            [("attn.out_proj", hidden, hidden), ("mlp.linear1", mlp, hidden), ("mlp.linear2", hidden, mlp)]
        {
            plans.push(plan(format!("blocks.{n}.{name}.weight"), &[outputs, inputs], scaled(0.6, inputs)));
            plans.push(plan(format!("blocks.{n}.{name}.bias"), &[outputs], bias));
        }
    }
    norm(&mut plans, "norm".into());
    plans
}

/// The LLaMA under Hugging Face's names, in the order of a forward pass, so that shards hold whole stretches of layers.
pub fn llama(l: &Llama) -> Vec<Plan> {
    let (h, mlp) = (l.hidden, l.mlp);
    // What is added to the residual stream shrinks with depth, as initialisations do it.
    let out = 1.25 / (2.0 * l.layers as f32).sqrt();
    let mut plans = vec![plan("model.embed_tokens.weight", &[l.vocab, h], Draw::Normal(0.0, 0.02))];
    for n in 0..l.layers {
        for (name, outputs, inputs, gain) in [
            ("self_attn.q_proj", h, h, 1.25),
            ("self_attn.k_proj", h, h, 1.25),
            ("self_attn.v_proj", h, h, 1.0),
            ("self_attn.o_proj", h, h, out),
            ("mlp.gate_proj", mlp, h, 1.25),
            ("mlp.up_proj", mlp, h, 1.25),
            ("mlp.down_proj", h, mlp, out),
        ] {
            plans.push(plan(format!("model.layers.{n}.{name}.weight"), &[outputs, inputs], scaled(gain, inputs)));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            plans.push(plan(format!("model.layers.{n}.{name}.weight"), &[h], Draw::Normal(0.5, 0.1)));
        }
    }
    plans.push(plan("model.norm.weight", &[h], Draw::Normal(1.5, 0.2)));
    plans.push(plan("lm_head.weight", &[l.vocab, h], Draw::Normal(0.0, 0.02)));
    plans
}
