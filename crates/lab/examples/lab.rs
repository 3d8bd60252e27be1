//! A lab without the rest of the program: `lab up NAME MACHINES [PACKAGE…]`, `lab down NAME`, `lab dial NAME HOST PORT`.

#![allow(clippy::print_stdout)]

use std::error::Error;

use quorate_lab::{Lab, Options};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["up", name, machines, ref packages @ ..] => {
            let program = std::env::current_exe()?.to_string_lossy().into_owned();
            let options = Options {
                machines: Some(machines.parse()?),
                packages: packages.iter().map(|&package| package.to_owned()).collect(),
                ..Options::new(name, vec![program, "dial".into()])
            };
            let lab = Lab::up(&options, &mut |event| println!("{event}"))?;
            println!("ssh -F {} m1", lab.ssh_config().display());
        }
        ["down", name] => Lab::down(name, &mut |event| println!("{event}"))?,
        ["dial", name, host, port] => Lab::open(name)?.splice(host, port.parse()?)?,
        _ => return Err("lab up NAME MACHINES [PACKAGE…] | down NAME | dial NAME HOST PORT".into()),
    }
    Ok(())
}
