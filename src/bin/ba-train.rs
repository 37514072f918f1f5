//! `ba-train`: see [`brain_adapter::cli::train`].

fn main() -> std::process::ExitCode {
    brain_adapter::cli::train::main()
}
