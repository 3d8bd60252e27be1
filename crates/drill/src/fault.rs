//! Faults on machines: a timer that takes it back is set before anything is broken.

use std::time::Duration;

use quorate_machine::proto::Exec;
use quorate_machine::{ErrorKind, MachineError, MachineRef};
use quorate_spec::{Machine, Spec};

use crate::scenario::{CANNOT, PRELUDE};

/// Beyond the time a fault is meant to stay: what taking it back may take on a slow machine.
pub(crate) const DEADMAN_MARGIN: Duration = Duration::from_secs(30);

/// The revert script on its standard input is kept where a restart loses it, like the fault itself.
const ARM: &str = r#"umask 077; mkdir -p /run/quorate-drill; cat > "/run/quorate-drill/$1.sh"
systemctl stop "quorate-drill-$1.timer" 2>/dev/null || true
exec systemd-run --quiet --collect --unit="quorate-drill-$1" --on-active="$2" --timer-property=AccuracySec=100ms /bin/sh "/run/quorate-drill/$1.sh""#;

/// Taken back now, the timer is needed no more.
const REVERT: &str = r#"sh "/run/quorate-drill/$1.sh"; systemctl stop "quorate-drill-$1.timer" 2>/dev/null || true; rm -f "/run/quorate-drill/$1.sh""#;

const DISARM: &str = r#"systemctl stop "quorate-drill-$1.timer" 2>/dev/null || true"#;

/// A script for one machine.
pub(crate) struct Injection {
    pub(crate) machine: MachineRef,
    /// Letters, digits and dashes; unique on the machine while it lasts.
    pub(crate) id: String,
    inject: String,
    revert: String,
    /// For the inject script; may be secret.
    input: String,
}

impl Injection {
    #[expect(clippy::too_many_arguments, reason = "what a script may name")]
    pub(crate) fn new(
        spec: &Spec,
        on: &Machine,
        machine: MachineRef,
        id: String,
        inject: &str,
        revert: &str,
        interface: &str,
        program: &str,
    ) -> Self {
        let fill = |text: &str| format!("{PRELUDE}{}\n", filled(text, spec, on, interface, program));
        Self {
            machine,
            id,
            inject: fill(inject),
            revert: fill(revert),
            input: String::new(),
        }
    }

    pub(crate) fn input(self, input: String) -> Self {
        Self { input, ..self }
    }

    /// Sets the timer.
    pub(crate) async fn arm(&self, after: Duration) -> Result<(), MachineError> {
        let seconds = after.as_secs().to_string();
        self.machine
            .exec_ok(Exec::new(["/bin/sh", "-euc", ARM, "sh", &self.id, &seconds]).stdin(self.revert.as_str()))
            .await
            .map(drop)
    }

    /// `Err` of the inner: why this machine cannot have such a fault; nothing was broken.
    pub(crate) async fn inject(&self) -> Result<Result<(), String>, MachineError> {
        let exec = Exec::new(["/bin/sh", "-euc", &self.inject]).stdin(self.input.as_str());
        let output = self.machine.exec(exec).await?;
        match output.status {
            Some(0) => Ok(Ok(())),
            Some(CANNOT) => Ok(Err(output.stderr.lossy().trim().to_owned())),
            _ => Err(MachineError::new(
                self.machine.name(),
                "inject a fault",
                ErrorKind::Failed,
                format!("exit status {:?}: {}", output.status, output.stderr.lossy().trim()),
            )),
        }
    }

    /// Somebody else takes it back: no timer any more.
    pub(crate) async fn disarm(&self) -> Result<(), MachineError> {
        self.machine
            .exec_ok(Exec::new(["/bin/sh", "-c", DISARM, "sh", &self.id]))
            .await
            .map(drop)
    }

    /// Safe to repeat.
    pub(crate) async fn revert(&self) -> Result<(), MachineError> {
        self.machine
            .exec_ok(Exec::new(["/bin/sh", "-c", REVERT, "sh", &self.id]).timeout_ms(60_000))
            .await
            .map(drop)
    }
}

/// A script with this cluster's and machine's values.
pub(crate) fn filled(text: &str, spec: &Spec, on: &Machine, interface: &str, program: &str) -> String {
    let others: Vec<String> = spec
        .control_planes()
        .iter()
        .filter(|machine| machine.name != on.name)
        .map(|machine| machine.address.to_string())
        .collect();
    let holders: Vec<String> = spec
        .vip_holders()
        .iter()
        .map(|machine| machine.address.to_string())
        .collect();
    let mut text = text
        .replace("{others}", &others.join(", "))
        .replace("{other}", others.first().map_or("", String::as_str))
        .replace("{holders}", &holders.join(","))
        .replace("{data}", &spec.etcd.data_dir)
        .replace("{interface}", interface)
        .replace("{program}", program)
        .replace("{machine}", &on.name)
        .replace("{peers}", &others.join(" "))
        .replace("{address}", &on.address.to_string());
    if let Some(endpoint) = &spec.endpoint {
        text = text
            .replace("{vip}", &endpoint.vip.to_string())
            .replace("{vrid}", &endpoint.vrid.to_string());
    }
    if on.address.is_ipv6() {
        text.replace("ip saddr", "ip6 saddr").replace("ip daddr", "ip6 daddr")
    } else {
        text
    }
}
