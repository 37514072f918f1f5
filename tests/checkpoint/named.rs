//! Classes that a pickle only names: data as a key or value of a dict, refused anywhere else.

use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::error::Code;

/// What a legacy file around a hand-made object pickle is refused with.
fn refusal(object: &[u8]) -> (Code, String) {
    let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    file.extend([object, b"\x80\x02]."].concat());
    let error = Checkpoint::from_bytes(file, "hand.pt").unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn a_name_is_data_in_a_dict_and_refused_anywhere_else() {
    // As a key and as a value: the file is read, and holds no tensors.
    for object in [
        &b"}cmylab.callbacks\nKeepBest\nNs."[..],
        b"}(cmylab.callbacks\nKeepBest\nNX\x01\0\0\0acmylab\nNet\nu.",
        b"(cmylab\nNet\nNd.",
        b"}\x8c\x05mylab\x8c\x03Net\x93q\0Ns.",
    ] {
        let (code, line) = refusal(object);
        assert_eq!(code, Code::CHECKPOINT_FORMAT, "{line}");
        assert!(line.contains("holds no tensors"), "{line}");
    }
    for (object, words) in [
        // Called: by REDUCE, NEWOBJ, NEWOBJ_EX, from the memo, and as a key that is used again.
        (&b"cmylab\nNet\n)R."[..], "`mylab.Net`"),
        (b"cmylab\nNet\n)\x81.", "`mylab.Net`"),
        (b"cmylab\nNet\n)}\x92.", "`mylab.Net`"),
        (b"}cmylab\nNet\nq\0Nsh\0)R.", "`mylab.Net`"),
        (b"}cmylab\nNet\nq\x01h\x01)Rs.", "`mylab.Net`"),
        (b"\x8c\x05mylab\x8c\x03Net\x93)\x81.", "`mylab.Net`"),
        // An argument, an item, a state, a persistent id, a base of another object, the whole, dropped.
        (b"ccollections\nOrderedDict\ncmylab\nNet\n\x85R.", "`mylab.Net`"),
        (b"]cmylab\nNet\na.", "`mylab.Net`"),
        (b"(cmylab\nNet\nl.", "`mylab.Net`"),
        (b"}cmylab\nNet\nb.", "`mylab.Net`"),
        (b"cmylab\nNet\nQ.", "`mylab.Net`"),
        (b"cmylab\nNet\n.", "`mylab.Net`"),
        (b"cmylab\nNet\n0}.", "`mylab.Net`"),
        (b"(cmylab\nNet\n1}.", "`mylab.Net`"),
        // Functions and Python's own, wherever.
        (b"}cmylab\nrun\nNs.", "`mylab.run`"),
        (b"}csubprocess\nPopen\nNs.", "`subprocess.Popen`"),
        (b"}X\x01\0\0\0acos\nsystem\ns.", "`os.system`"),
        (b"}cbuiltins\ngetattr\nNs.", "`builtins.getattr`"),
        (b"}cnumpy\nload\nNs.", "`numpy.load`"),
        (b"}cpathlib\n_run\nNs.", "`pathlib._run`"),
        (b"}ctorch.optim.adam\nAdam\n)Rs.", "optimizer.state_dict()"),
        // The class of a tensor that is made of others.
        (b"ctorch._utils\n_rebuild_wrapper_subclass\n(cmylab\nPacked\nt.", "subclass"),
    ] {
        let (code, line) = refusal(object);
        assert_eq!(code, Code::CHECKPOINT_UNSAFE_PICKLE, "{line}");
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn long_names_and_shared_dicts_take_no_quadratic_time() {
    let started = std::time::Instant::now();
    // A class whose name is 1 MB: the message holds its start alone.
    let long = [
        b"X\x40\x42\x0f\0".to_vec(),
        vec![b'N'; 1_000_000],
        b"q\x00X\x05\0\0\0mylabq\x0100}q\x02(".to_vec(),
        b"h\x01h\x00\x93N".to_vec(),
        b"u.".to_vec(),
    ]
    .concat();
    let (code, line) = refusal(&long);
    assert!(code == Code::CHECKPOINT_UNSAFE_PICKLE && line.len() < 1000, "{line}");
    // Short ones, mentioned a million times from the memo.
    let short = b"X\x05\0\0\0mylabq\0X\x03\0\0\0Netq\x0100}(";
    assert_eq!(refusal(&[&short[..], &b"Nh\0h\x01\x93".repeat(1_000_000), b"u."].concat()).0, Code::CHECKPOINT_FORMAT);
    // One large dict of arrays under a hundred thousand keys, directly and behind a wrapper each.
    let mut shared = b"cnumpy.core.multiarray\n_reconstruct\n)Rq\0}q\x01(".to_vec();
    for i in 0..100_000u32 {
        shared.extend([&b"X\x07\0\0\0"[..], format!("{i:07}").as_bytes(), b"h\0"].concat());
    }
    shared.extend(b"u0}q\x02X\x01\0\0\0wh\x01s0}(");
    for i in 0..100_000u32 {
        let which: &[u8] = if i % 2 == 0 { b"h\x01" } else { b"h\x02" };
        shared.extend([&b"X\x07\0\0\0"[..], format!("k{i:06}").as_bytes(), which].concat());
    }
    shared.extend(b"u.");
    let (code, line) = refusal(&shared);
    assert!(code == Code::CHECKPOINT_FORMAT && line.contains("--key"), "{line}");
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}
