//! Local machines: Debian with systemd and sshd, each with a disk, an address and a power switch, on a network
//! of their own on this one computer. They are reached over SSH like any other machine.
//!
//! ```no_run
//! use quorate_lab::{Lab, Options};
//!
//! let options = Options::new("demo", vec!["/usr/local/bin/quorate".into(), "lab".into(), "dial".into()]);
//! let lab = Lab::up(&options, &mut |event| println!("{event}"))?;
//! lab.off("m1")?;                       // power cut
//! lab.on("m1")?;                        // returns when its sshd answers
//! lab.cut("m2", "m3", false)?;          // no packet between the two
//! lab.heal()?;
//! Lab::down("demo", &mut |_| ())?;      // nothing is left
//! # Ok::<(), quorate_lab::Error>(())
//! ```
//!
//! Where things are: `$XDG_STATE_HOME/quorate/labs/NAME` holds disks, keys and `lab.json`; `/run/quorate/labs/NAME`
//! points there, so that every user of root finds it; `$XDG_CACHE_HOME/quorate/lab-root` holds the shared root trees.
//! All calls block; run them on a thread of their own from async code.

mod command;
mod description;
mod error;
mod event;
mod files;
mod host;
mod lab;
mod limits;
mod lock;
mod network;
mod places;
mod power;
mod reach;
mod root;
mod sys;

pub use description::{Cut, Description, Machine, Role, Storage, Subnet, check_name};
pub use error::{Error, Result};
pub use event::Event;
pub use lab::{Lab, Options, list};
pub use network::OPERATOR;
