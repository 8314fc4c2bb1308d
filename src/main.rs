//! The binary: everything is in [`inknib::cli`].

fn main() -> std::process::ExitCode {
    // First, while there is only this thread: see its comment.
    inknib::gpu::prepare_environment();
    inknib::cli::main()
}
