//! `train-backbones`: makes the backbones of a soup.

fn main() {}
