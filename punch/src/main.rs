//! The program `punch`.

fn main() {}
