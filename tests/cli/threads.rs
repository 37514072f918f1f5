//! A machine on which no thread is to be had: an error in one line, never a panic.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use support::commands::{self, Done, bare, finish};
use support::oracle;

/// A folder that every user may read and write, with the programs, a model, a bundle, and a cohort.
struct Place {
    dir: tempfile::TempDir,
    user: Option<String>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for program in ["ba-export", "ba-infer", "ba-train"] {
            let copied = Command::new("cp").arg(bare(program).get_program()).arg(path(program)).status();
            assert!(copied.unwrap().success());
        }
        fs::copy(commands::library(), path("libonnxruntime.so")).unwrap();
        commands::write_model(&path("model"), "tiny", "tiny");
        fs::create_dir(path("bundle")).unwrap();
        commands::copy_files(commands::tiny_bundle(), &path("bundle"));
        fs::copy(commands::scan(), path("s.nii.gz")).unwrap();
        commands::report(dir.path());
        let rows = ["train", "train", "train", "val"].iter().zip(["CN", "MCI", "AD", "CN"]).enumerate();
        let rows = rows.map(|(i, (split, label))| format!("s{i}.nii.gz,report.txt,{label},{split}\n"));
        fs::write(path("cohort.csv"), format!("scan,report,label,split\n{}", rows.collect::<String>())).unwrap();
        for i in 0..4 {
            fs::copy(commands::scan(), path(&format!("s{i}.nii.gz"))).unwrap();
        }
        let opened = Command::new("chmod").args(["-R", "a+rwX"]).arg(dir.path()).status();
        assert!(opened.unwrap().success());
        Self { dir, user: other_user() }
    }

    /// Runs a program of the folder in it, with at most so many processes and threads.
    fn run(&self, limit: u32, words: &str) -> Done {
        let words: Vec<&str> = words.split(' ').collect();
        let program = self.dir.path().join(words[0]);
        let mut command = match &self.user {
            // Limits do not hold for root. A user of this process's own: others' threads must not count.
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", user, "--regid", user, "--clear-groups", "prlimit"]);
                command.arg(format!("--nproc={limit}"));
                command
            }
            None => {
                let mut command = Command::new("sh");
                command.args(["-c", "ulimit -u $0 && exec \"$@\""]).arg(limit.to_string());
                command
            }
        };
        command.arg(program).args(&words[1..]).current_dir(self.dir.path());
        for name in ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "RAYON_NUM_THREADS", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        finish(&mut command)
    }
}

/// The user as whom a limit holds, where this process is root's.
fn other_user() -> Option<String> {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    root.then(|| (200_000 + std::process::id()).to_string())
}

/// Whether limits can be set here.
fn can_limit(place: &Place) -> bool {
    let Some(user) = &place.user else { return true };
    let words = ["--reuid", user, "--regid", user, "--clear-groups", "prlimit", "--nproc=9", "true"];
    Command::new("setpriv").args(words).status().is_ok_and(|status| status.success())
}

/// Every command at every small limit: done, or one line with the code; never a panic and never an abort.
#[test]
fn no_thread_to_be_had_is_one_line() {
    let place = Place::new();
    if !can_limit(&place) {
        return oracle::not_here("no setpriv or prlimit for another user", "commands without threads");
    }
    let commands = [
        "ba-infer s.nii.gz --report report.txt --bundle bundle",
        "ba-infer s0.nii.gz s1.nii.gz --bundle bundle --json",
        "ba-infer --list cohort.csv --bundle bundle --threads 2 --mode one-shot",
        "ba-export --model model -o exported --force",
        "ba-train prepare --model model -o artifacts",
        "ba-train eval --data cohort.csv --bundle bundle",
    ];
    let limits: &[u32] = if place.user.is_some() { &[1, 2, 3, 4, 5, 6, 8] } else { &[1] };
    let mut refused = 0;
    for command in commands {
        for limit in limits {
            let done = place.run(*limit, command);
            if done.code == Some(0) {
                continue;
            }
            let error = |line: &&str| line.starts_with("error[");
            let line = done.stderr.lines().find(error).unwrap_or_default().to_owned();
            eprintln!("{limit}: {command}: {line}");
            assert_eq!(done.stderr.lines().filter(error).count(), 1, "{limit}: {command}: {done:#?}");
            done.fails("threads.unavailable").naming(&["thread", "ulimit -u"]);
            refused += 1;
        }
        // With one thread alone nothing can start.
        place.run(1, command).fails("threads.unavailable");
    }
    assert!(refused >= commands.len());
    let json = place.run(1, "ba-infer s.nii.gz --bundle bundle --json");
    assert_eq!(json.json()["error"]["code"], "threads.unavailable");
    if place.user.is_some() {
        place.run(200, commands[0]).ok();
    }
}
