//! `ba-infer`: see [`brain_adapter::cli::infer`].

fn main() -> std::process::ExitCode {
    brain_adapter::cli::infer::main()
}
