//! `imt ring`: show the ring.

use crate::error::CliError;
use crate::output::{self, OutputFormat};
use imt_ring::Ring;
use std::path::PathBuf;
use std::process::ExitCode;

/// `imt ring ...`
#[derive(clap::Subcommand)]
pub(crate) enum RingCommand {
    /// Show who owns which share of the ring.
    #[command(after_help = "Examples:\n  imt ring show\n  imt ring show --data /srv/imt --output json")]
    Show {
        #[command(flatten)]
        source: Source,
    },
}

/// Where the ring is read from.
#[derive(clap::Args)]
pub(crate) struct Source {
    /// The data folder; its ring.json is the ring in force, whether a node runs or not.
    #[arg(long, env = "IMT_DATA", default_value = "data", value_name = "DIR")]
    data: PathBuf,
}

impl Source {
    fn ring(&self) -> Result<Ring, CliError> {
        let path = self.data.join("ring.json");
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CliError::failed(format!(
                "there is no ring at {}; the first node makes it (imt node start, or imt sim run)",
                path.display()
            )),
            _ => CliError::because(format!("cannot read {}", path.display()), error),
        })?;
        serde_json::from_slice(&text).map_err(|error| CliError::because(format!("{} is not a ring", path.display()), error))
    }
}

impl RingCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        let Self::Show { source } = self;
        let ring = source.ring()?;
        match output {
            OutputFormat::Json => output::print_json(&ring)?,
            OutputFormat::Table => output::print_text(&show(&ring))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(ring: &Ring) -> String {
    let mut rows = vec![["node", "weight", "zone", "slots", "share"].map(str::to_owned).to_vec()];
    rows.extend(ring.members().iter().map(|member| {
        let slots = ring.slots_of(member.name()).count();
        let share = 100.0 * slots as f64 / f64::from(ring.slots());
        vec![
            member.name().to_string(),
            member.weight().to_string(),
            member.zone().map_or_else(|| "-".to_owned(), ToString::to_string),
            slots.to_string(),
            format!("{share:.2} %"),
        ]
    }));
    format!("epoch {}, {} slots\n\n{}", ring.epoch(), ring.slots(), output::table(&rows))
}
