//! A node alone: `cargo run -p imt-oms --release --example serve -- DATA LISTEN WAREHOUSE`.

use imt_oms::{Node, NodeConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut config = NodeConfig::new("example", arguments.next().unwrap_or_else(|| "data".to_owned()));
    if let Some(listen) = arguments.next() {
        config.listen = listen.parse()?;
    }
    if let Some(warehouse) = arguments.next() {
        config.warehouse = Some(warehouse);
    }
    let node = Node::start(config).await?;
    println!(
        "orders are taken at http://{}/order; Ctrl-C stops",
        node.address()
    );
    tokio::signal::ctrl_c().await?;
    node.stop().await?;
    Ok(())
}
