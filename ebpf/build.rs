//! Links anew when the linker changes; its version decides what the object looks like.

fn main() {
    // Set by userspace/build.rs; a check on the host has no BPF linker to watch.
    println!("cargo:rerun-if-env-changed=ARPWARDEN_BPF_LINKER");
    if let Ok(linker) = std::env::var("ARPWARDEN_BPF_LINKER") {
        println!("cargo:rerun-if-changed={linker}");
    }
}
