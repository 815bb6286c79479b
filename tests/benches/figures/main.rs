//! The figures that stay: nanoseconds per frame, how soon a claim is met, and what the program costs other traffic. Needs root; run it by
//! `cargo xtask bench`. Ratios are taken within one run, because absolute figures are those of the machine.

mod assembler;
mod bulk;
mod defence;
mod per_frame;
mod report;

fn main() {
    let (empty, rows) = per_frame::measure();
    println!(
        "Nanoseconds per frame of 60 bytes, by test-run: median (lowest to highest), ratio to the least responder"
    );
    println!("  {:<38}{empty}        with the harness; taken off below", "empty program");
    let least = rows[0].1.median;
    for (name, figure) in rows {
        println!("  {name:<38}{figure} {:>5.2}", figure.median / least);
    }

    println!(
        "\nClaim on the wire to defence on the wire, native on a veth, microseconds: p50, p99 (longest)"
    );
    for (way, took) in defence::measure() {
        println!("  {way:<38}{:>6.1} {:>6.1} ({:.1})", took.p50, took.p99, took.longest);
    }

    let modes = bulk::measure();
    println!("\nBulk TCP into the interface, Gbit/s through veth: median (lowest to highest), ratio to none");
    let none = modes[0].1.median;
    for (mode, figure) in modes {
        println!("  {mode:<38}{figure:.1} {:>5.2}", figure.median / none);
    }
}
