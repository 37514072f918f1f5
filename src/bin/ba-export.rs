//! `ba-export`: see [`brain_adapter::cli::export`].

fn main() -> std::process::ExitCode {
    brain_adapter::cli::export::main()
}
