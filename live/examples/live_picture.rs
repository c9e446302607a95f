//! Prints a picture of the live view as SVG. The input is a moment of a run that the key `s` saved.
//!
//! `cargo run -p imt-live --example live_picture -- [COLUMNS ROWS [light]] < view-1.json`
//!
//! The input of `docs/images/live.svg` is `docs/images/live.json`.

use std::io::Read;

use imt_live::picture::svg_of;
use imt_live::state::Recording;
use imt_live::svg::Paper;
use ratatui::layout::Size;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let cells = |place: usize, usual: u16| args.get(place).map_or(Ok(usual), |text| text.parse());
    let size = Size::new(cells(0, 120)?, cells(1, 40)?);
    let paper = match args.get(2).map(String::as_str) {
        Some("light") => Paper::Light,
        _ => Paper::Dark,
    };
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let recording: Recording = serde_json::from_str(&text)?;
    print!("{}", svg_of(&recording.into(), size, paper)?);
    Ok(())
}
