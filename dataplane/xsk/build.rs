//! Compiles the redirect program with clang.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=bpf/redirect.c");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("redirect.o");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let mut command = Command::new(&clang);
    command.args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf"]);
    command.arg(format!("-I/usr/include/{arch}-linux-gnu")).args(["-c", "bpf/redirect.c", "-o"]).arg(&out);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} ended with {status} on bpf/redirect.c\n  it needs libbpf's headers: apt-get install libbpf-dev"),
        Err(error) => panic!("cannot run {clang}: {error}\n  it compiles bpf/redirect.c: apt-get install clang, or set CLANG"),
    }
}
