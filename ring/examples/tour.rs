//! Prints a ring, the plans for a node that joins and a node that leaves, and the locations of
//! keys. Run it with `cargo run -p imt-ring --example tour`.

use imt_ring::render::{self, Style};
use imt_ring::{Error, Member, Options, Ring, Slot};

fn main() -> Result<(), Error> {
    let members: Vec<Member> = ["paris:2@fr", "lyon@fr", "berlin@de", "bonn@de", "rome:2@it"]
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let ring = Ring::bootstrap(members, Options::new().slots(1024).replication(2))?;
    println!("{ring}");

    let plan = ring.plan_join("milan@it".parse()?)?;
    println!("{plan}");
    let ring = ring.apply(&plan)?;

    let plan = ring.plan_leave(&"bonn".parse()?)?;
    println!(
        "{}",
        render::plan(
            &plan,
            Style {
                width: 120,
                colour: false
            }
        )
    );
    let ring = ring.apply(&plan)?;
    let ring = ring.apply(&ring.pin(Slot(7), &"lyon".parse()?)?)?;
    println!("{ring}");
    print!(
        "{}",
        render::places(&ring.places(&["order 17", "order 18", "order 19"]))
    );
    Ok(())
}
