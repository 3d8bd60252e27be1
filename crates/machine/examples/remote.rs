//! Serves requests on standard input and output, as `quorate remote` does; the tests place it on their machines.

#[tokio::main]
async fn main() -> std::io::Result<()> {
    quorate_machine::remote::serve_stdio().await
}
