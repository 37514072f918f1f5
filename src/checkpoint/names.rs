//! Names of tensors: how long they may be, and what wrappers of modules put into them.

/// Longest name of a tensor, in bytes.
pub(super) const MAX_NAME: usize = 1024;

/// A tensor's name without the prefixes that wrappers of modules add.
///
/// `module.` (`DataParallel` and its kin) is taken from the front, as often as it is there; the components
/// `_orig_mod` (`torch.compile`), `_fsdp_wrapped_module` and `_checkpoint_wrapped_module`, which no module is named by
/// hand, wherever they are.
pub(super) fn strip(name: &str) -> String {
    let machine_made = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
    let parts: Vec<&str> = name.split('.').collect();
    let last = parts.len() - 1;
    let kept = parts.iter().enumerate().filter(|(i, part)| *i == last || !machine_made.contains(part));
    let kept: Vec<&str> = kept.map(|(_, part)| *part).collect();
    let front = kept.iter().take(kept.len() - 1).take_while(|part| **part == "module").count();
    kept[front..].join(".")
}

/// A name, or another text of a file, as a message shows it: cut at 120 characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

/// Up to 20 names in one line, each cut at 240 characters, and how many more there are.
pub(crate) fn listed(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 20;
    let cut = |name: &str| match name.char_indices().nth(240) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    };
    let shown: Vec<String> = names.iter().take(SHOWN).map(|n| cut(n.as_ref())).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::strip;

    #[test]
    fn wrapper_prefixes_are_stripped() {
        for (name, want) in [
            ("adapter.reduce.conv.weight", "adapter.reduce.conv.weight"),
            ("module.a.b", "a.b"),
            ("_orig_mod.module.a.b", "a.b"),
            ("module._orig_mod.module.a", "a"),
            ("vision._orig_mod.norm.weight", "vision.norm.weight"),
            ("vision.module.norm", "vision.module.norm"),
            ("module", "module"),
            ("module.module", "module"),
            ("_orig_mod", "_orig_mod"),
            ("", ""),
        ] {
            assert_eq!(strip(name), want, "{name}");
        }
    }
}
