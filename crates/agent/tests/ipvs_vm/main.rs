//! IPVS on a stock Debian kernel, in a small virtual machine (qemu without hardware help), since few build machines have
//! it in their own kernel. The same program is the test on the host and in the machine; where QUORATE names the whole
//! program (`make test-lab`), that is the agent there.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    reason = "a test program with a main of its own"
)]

mod agent;
mod load;
#[path = "../netns/mod.rs"]
mod netns;
mod setting;
mod table;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use quorate_agent::ipvs;

/// Boot and all tests take a minute on an idle machine without hardware help, and several on a busy one.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() {
    match std::env::var("QT_ROLE").as_deref() {
        Ok("server") => setting::serve(),
        Ok("agent") => agent::run(),
        Ok("guest") => netns::main(&[
            ("rules_are_ipvsadms", table::rules_are_ipvsadms as fn()),
            (
                "clients_are_freed_though_the_kernel_forgot_them",
                table::clients_are_freed_though_the_kernel_forgot_them as fn(),
            ),
            (
                "foreign_deletions_are_healed",
                table::foreign_deletions_are_healed as fn(),
            ),
            (
                "removal_leaves_what_is_not_ours",
                table::removal_leaves_what_is_not_ours as fn(),
            ),
            (
                "real_servers_die_and_return_under_load",
                agent::real_servers_die_and_return_under_load as fn(),
            ),
            (
                "a_foreign_flush_under_load_is_healed",
                agent::a_foreign_flush_under_load_is_healed as fn(),
            ),
            (
                "an_agent_that_is_replaced_is_not_missed",
                agent::an_agent_that_is_replaced_is_not_missed as fn(),
            ),
            (
                "an_agent_without_services_leaves_nothing",
                agent::an_agent_without_services_leaves_nothing as fn(),
            ),
            (
                "a_reload_without_services_leaves_others_theirs",
                agent::a_reload_without_services_leaves_others_theirs as fn(),
            ),
        ]),
        _ => netns::main(&[
            ("a_kernel_without_ipvs_says_so", a_kernel_without_ipvs_says_so as fn()),
            ("in_a_virtual_machine", in_a_virtual_machine as fn()),
        ]),
    }
}

/// On the host: either it works, or the reason names the module and the way out.
fn a_kernel_without_ipvs_says_so() {
    match ipvs::supported() {
        Ok(()) => println!("this kernel has IPVS"),
        Err(error) => {
            println!("{error}");
            assert!(error.to_string().contains("ip_vs") && error.to_string().contains("access mode proxy"));
        }
    }
}

fn in_a_virtual_machine() {
    if !netns::found("qemu-system-x86_64") {
        println!("skipped: qemu-system-x86_64 is not installed");
        return;
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let cache = home.join(".cache/quorate/vm");
    let directory = Directory(std::env::temp_dir().join(format!("qt-agent-vm-{}", std::process::id())));
    let work = &directory.0;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ipvs_vm/make.sh");
    let program = std::env::current_exe().expect("program");
    let made = Command::new("sh")
        .arg(script)
        .args([&cache, &program, work])
        .args(std::env::var_os("QUORATE"))
        .stdin(Stdio::null())
        .output()
        .expect("sh");
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    if made.status.code() == Some(77) {
        println!("skipped: {}", said.trim());
        return;
    }
    assert!(made.status.success(), "{said}{}", String::from_utf8_lossy(&made.stderr));
    let console = boot(work);
    println!("{console}");
    assert!(console.contains("--- guest exit code 0"), "the guest failed");
}

/// Removed with the value.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Boots and returns everything the console showed.
fn boot(work: &Path) -> String {
    let file = |name: &str| work.join(name).to_str().expect("path").to_owned();
    let mut machine = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            "768",
            "-nographic",
            "-no-reboot",
            "-nic",
            "none",
        ])
        // Its clock counts instructions and jumps over idle time: what it measures does not depend on this machine's load.
        .args(["-icount", "shift=1,sleep=off"])
        .args(["-kernel", &file("vmlinuz"), "-initrd", &file("initramfs.gz")])
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("qemu");
    let mut output = machine.stdout.take().expect("console");
    let (sender, console) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = output.read_to_end(&mut text);
        let _ = sender.send(String::from_utf8_lossy(&text).replace('\r', ""));
    });
    let text = console.recv_timeout(PATIENCE);
    let _ = machine.kill();
    let _ = machine.wait();
    let late = text.is_err();
    let text = text.unwrap_or_else(|_| console.recv().unwrap_or_default());
    let _ = reader.join();
    assert!(!late, "the machine did not end within {PATIENCE:?}: {text}");
    text
}
