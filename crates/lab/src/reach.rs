//! Reaching a lab's machines from this side.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::description::Machine;
use crate::host::Host;
use crate::{Error, Lab, Result};

/// Half a second when idle; a busy computer with many machines may need a while.
const BOOT_WITHIN: Duration = Duration::from_secs(60);
const DIAL_WITHIN: Duration = Duration::from_secs(10);

impl Lab {
    /// Connects from the operator's place in the lab's network. `host` is an address or a machine's name. The
    /// socket is an ordinary one and can be used from any thread.
    pub fn dial(&self, host: &str, port: u16) -> Result<TcpStream> {
        let address = SocketAddr::new(self.description().resolve(host)?, port);
        self.inside(|| TcpStream::connect_timeout(&address, DIAL_WITHIN))?
            .map_err(|source| Error::Connect {
                lab: self.name().into(),
                host: host.into(),
                port,
                source,
            })
    }

    /// Connects stdin and stdout to a port of a machine, as ssh wants it from a ProxyCommand. Ends when the machine
    /// closes; when stdin ends first, that is handed on and the rest still read.
    pub fn splice(&self, host: &str, port: u16) -> Result<()> {
        let connection = self.dial(host, port)?;
        splice(connection).map_err(|source| Error::Connect {
            lab: self.name().into(),
            host: host.into(),
            port,
            source,
        })
    }

    /// Until each has sent the first line of the SSH protocol. A machine whose processes are all gone has failed
    /// and is not waited for.
    pub(crate) fn wait_for_ssh(
        &self,
        host: &Host,
        machines: &[&Machine],
        ready: &mut dyn FnMut(&Machine),
    ) -> Result<()> {
        let begun = Instant::now();
        let mut waiting: Vec<&Machine> = machines.to_vec();
        loop {
            let answers = self.inside(|| waiting.iter().map(|m| answers_ssh(m)).collect::<Vec<_>>())?;
            let (now, still): (Vec<_>, Vec<_>) = waiting.into_iter().zip(answers).partition(|(_, answers)| *answers);
            now.iter().for_each(|(machine, _)| ready(machine));
            waiting = still.into_iter().map(|(machine, _)| machine).collect();
            if waiting.is_empty() {
                return Ok(());
            }
            for machine in &waiting {
                let power = self.power(host, machine);
                // At first it has not reached its control group yet.
                if begun.elapsed() > Duration::from_secs(2) && !power.is_on() {
                    return Err(power.failure("it stopped while booting"));
                }
                if begun.elapsed() > BOOT_WITHIN {
                    return Err(power.failure(&format!("no SSH after {} s", BOOT_WITHIN.as_secs())));
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn answers_ssh(machine: &Machine) -> bool {
    let address = SocketAddr::new(machine.address.into(), 22);
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) else {
        return false;
    };
    let mut banner = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.read_exact(&mut banner).is_ok()
        && banner == *b"SSH-"
}

fn splice(mut from_machine: TcpStream) -> io::Result<()> {
    from_machine.set_nodelay(true)?;
    let mut to_machine = from_machine.try_clone()?;
    // The bare descriptors: std's own stdin and stdout would look for line breaks in what is no text.
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    std::thread::spawn(move || {
        // Either side going away ends it, and is not worth a message on top of ssh's own.
        let _ = copy(&mut stdin, &mut to_machine);
        let _ = to_machine.shutdown(Shutdown::Write);
    });
    let _ = copy(&mut from_machine, &mut stdout);
    Ok(())
}

/// Larger pieces than `io::copy` takes: whole Kubernetes releases pass through here.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => to.write_all(&buffer[..length])?,
        }
    }
}
