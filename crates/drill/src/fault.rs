//! Faults on machines: a timer that takes it back is set before anything is broken.

use std::time::Duration;

use quorate_machine::proto::Exec;
use quorate_machine::{ErrorKind, MachineError, MachineRef};
use quorate_spec::{Machine, Spec};

use crate::scenario::{CANNOT, PRELUDE};

/// Beyond the time a fault is meant to stay: what taking it back may take on a slow machine.
pub(crate) const DEADMAN_MARGIN: Duration = Duration::from_secs(30);

/// What a script may take, unless it says otherwise.
const WITHIN: Duration = Duration::from_secs(30);
/// The machine may be slow, and another drill's script may be at work.
const REVERT_WITHIN: Duration = Duration::from_secs(120);

/// All drills' scripts on a machine, so that none is carried out beside another; seconds one waits for its turn.
const LOCKED: [&str; 4] = ["flock", "-w", "20", "/run/quorate-drill/lock"];

/// Most faults end with a restart of the machine, and what would take them back may be lost with them.
const FLEETING: &str = "/run/quorate-drill";
/// Of faults that are still there after a restart: what they keep, and what takes them back.
const LASTING: &str = "/var/lib/quorate/drill";

/// When, at boot, a lasting fault is taken back: before those who would start with it.
pub(crate) const BEFORE_THE_CLUSTER: &str = "Before=etcd.service kube-apiserver.service kubelet.service";
/// What needs an API server for it.
pub(crate) const AFTER_THE_CLUSTER: &str = "Wants=network-online.target\nAfter=network-online.target etcd.service kube-apiserver.service kubelet.service quorate-agent.service";

/// The revert script on its standard input is kept in a folder (`$3`); the timer tries until the script succeeds, or somebody
/// else did it. Of a lasting fault (`$4`: the order at boot) a unit does the same after a restart, which ends all timers; it is
/// on disk before anything is broken. There the first try is awaited, so that it comes first; those after it are not.
const ARM: &str = r#"umask 077; mkdir -p /run/quorate-drill "$3"; cat > "$3/$1.sh"
cat > "$3/once" <<'END'
mkdir -p /run/quorate-drill
exec flock /run/quorate-drill/lock /bin/sh -c '[ ! -e "$0" ] || { /bin/sh "$0" && rm -f "$0"; }' "$1"
END
cat > "$3/until-done" <<'END'
until /bin/sh "${0%/*}/once" "$1"; do sleep 5; done
END
if [ -n "$4" ]; then
  cat > "$3/at-boot" <<'END'
timeout 60 /bin/sh "${0%/*}/once" "$1" || exec systemd-run --quiet --collect /bin/sh "${0%/*}/until-done" "$1"
END
  umask 022; wants=/etc/systemd/system/multi-user.target.wants; unit=/etc/systemd/system/quorate-drill-boot-$1.service
  mkdir -p $wants
  printf '[Unit]\nDescription=Take back what a drill broke before this machine restarted\n%s\n\n[Service]\nType=oneshot\nExecStart=/bin/sh %s %s\n' "$4" "$3/at-boot" "$3/$1.sh" > $unit
  ln -sf $unit $wants/
  sync "$3/$1.sh" "$3/once" "$3/until-done" "$3/at-boot" "$3" $unit $wants /etc/systemd/system
fi
systemctl stop "quorate-drill-$1.timer" 2>/dev/null || true
exec systemd-run --quiet --collect --unit="quorate-drill-$1" --on-active="$2" --timer-property=AccuracySec=100ms /bin/sh "$3/until-done" "$3/$1.sh""#;

/// Ends the revert script of a lasting fault.
const NOT_AT_BOOT: &str = "rm -f /etc/systemd/system/multi-user.target.wants/quorate-drill-boot-ID.service /etc/systemd/system/quorate-drill-boot-ID.service\n";

/// Once taken back the timer is needed no more. Without a script there is nothing to take back: it was done, or lost with the
/// fault when the machine restarted.
const REVERT: &str = r#"mkdir -p /run/quorate-drill
flock -w 60 /run/quorate-drill/lock /bin/sh -c '[ ! -e "$0" ] || { /bin/sh "$0" && rm -f "$0"; }' "$2/$1.sh" && {
  systemctl stop "quorate-drill-$1.timer" 2>/dev/null || true
}"#;

const DISARM: &str = r#"systemctl stop "quorate-drill-$1.timer" 2>/dev/null || true
"#;

/// A script for one machine.
pub(crate) struct Injection {
    pub(crate) machine: MachineRef,
    /// Letters, digits and dashes; unique on the machine while it lasts.
    pub(crate) id: String,
    inject: String,
    revert: String,
    /// For the inject script; may be secret.
    input: String,
    within: Duration,
    /// Of a fault that is still there after a restart: the order of the unit that takes it back then.
    at_boot: Option<&'static str>,
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
        foreign_vip: bool,
    ) -> Self {
        let fill = |text: &str| format!("{PRELUDE}{}\n", filled(text, spec, on, interface, program, foreign_vip));
        Self {
            machine,
            id,
            inject: fill(inject),
            revert: fill(revert),
            input: String::new(),
            within: WITHIN,
            at_boot: None,
        }
    }

    /// What it breaks stays broken over a restart of the machine, which ends timers: it is taken back at boot, too.
    pub(crate) fn lasting(mut self, order: &'static str) -> Self {
        self.revert.push_str(&NOT_AT_BOOT.replace("ID", &self.id));
        self.at_boot = Some(order);
        self
    }

    pub(crate) fn input(self, input: String) -> Self {
        Self { input, ..self }
    }

    /// What injecting may take.
    pub(crate) fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// Sets the timer.
    pub(crate) async fn arm(&self, after: Duration) -> Result<(), MachineError> {
        let seconds = after.as_secs().to_string();
        let order = self.at_boot.unwrap_or_default();
        let argv = ["/bin/sh", "-euc", ARM, "sh", &self.id, &seconds, self.folder(), order];
        self.machine
            .exec_ok(Exec::new(argv).stdin(self.revert.as_str()))
            .await
            .map(drop)
    }

    /// `Err` of the inner: why this machine cannot have such a fault; nothing was broken.
    pub(crate) async fn inject(&self) -> Result<Result<(), String>, MachineError> {
        let argv = LOCKED.into_iter().chain(["/bin/sh", "-euc", &self.inject]);
        let exec = Exec::new(argv)
            .stdin(self.input.as_str())
            .timeout_ms(u64::try_from(self.within.as_millis()).unwrap_or(u64::MAX));
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

    fn folder(&self) -> &'static str {
        if self.at_boot.is_some() { LASTING } else { FLEETING }
    }

    /// Somebody else takes it back: no timer any more, and nothing at boot.
    pub(crate) async fn disarm(&self) -> Result<(), MachineError> {
        let script = format!("{DISARM}{}", NOT_AT_BOOT.replace("ID", &self.id));
        self.machine
            .exec_ok(Exec::new(["/bin/sh", "-c", &script, "sh", &self.id]))
            .await
            .map(drop)
    }

    /// Safe to repeat.
    pub(crate) async fn revert(&self) -> Result<(), MachineError> {
        self.machine
            .exec_ok(
                Exec::new(["/bin/sh", "-c", REVERT, "sh", &self.id, self.folder()])
                    .timeout_ms(REVERT_WITHIN.as_millis() as u64),
            )
            .await
            .map(drop)
    }
}

/// A script with this cluster's and machine's values. `foreign_vip`: of others, who have their distribution's units.
pub(crate) fn filled(
    text: &str,
    spec: &Spec,
    on: &Machine,
    interface: &str,
    program: &str,
    foreign_vip: bool,
) -> String {
    let (haproxy, keepalived) = if foreign_vip {
        ("haproxy", "keepalived")
    } else {
        ("haproxy-quorate", "keepalived-quorate")
    };
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
        .replace("{haproxy}", haproxy)
        .replace("{keepalived}", keepalived)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::Shell;

    /// Fails the first time.
    const SECOND_TIME: &str = "if [ ! -e DIR/tried ]; then touch DIR/tried; exit 1; fi; echo done >>DIR/reverted";

    fn machine() -> Shell {
        let shell = Shell::new();
        shell.program("systemctl", r#"echo "$@" >>DIR/systemctl"#);
        shell.program("systemd-run", r#"echo "$@" >>DIR/systemd-run"#);
        shell.program("sleep", "");
        shell
    }

    /// As it is sent there.
    fn revert(shell: &Shell, script: &str) {
        shell.write(
            "run/d1-0.sh",
            &script.replace("DIR", &shell.path("").display().to_string()),
        );
    }

    #[test]
    fn a_revert_that_failed_is_not_done_and_keeps_its_timer() {
        let shell = machine();
        revert(&shell, SECOND_TIME);
        assert_eq!(shell.run(REVERT, &["d1-0", FLEETING], "").status.code(), Some(1));
        assert!(shell.path("run/d1-0.sh").exists(), "the timer finds it");
        assert_eq!(shell.read("systemctl"), "", "nor is the timer stopped");
        assert!(shell.run(REVERT, &["d1-0", FLEETING], "").status.success());
        assert!(!shell.path("run/d1-0.sh").exists());
        assert_eq!(shell.read("systemctl"), "stop quorate-drill-d1-0.timer\n");
        // And again, as after a lost answer, or on a machine that was restarted.
        assert!(shell.run(REVERT, &["d1-0", FLEETING], "").status.success());
        assert_eq!(shell.read("reverted"), "done\n", "once is enough");
    }

    #[test]
    fn the_timer_tries_until_it_is_done() {
        let shell = machine();
        assert!(
            shell
                .run(ARM, &["d1-0", "38", FLEETING, ""], SECOND_TIME)
                .status
                .success()
        );
        let timer = shell.read("systemd-run");
        assert!(timer.contains("--on-active=38"), "{timer}");
        let (_, command) = timer.split_once("/bin/sh ").unwrap();
        let done = shell.run(&format!("/bin/sh {command}"), &[], "");
        assert!(done.status.success(), "{done:?}");
        assert_eq!(shell.read("reverted"), "done\n");
        assert!(!shell.path("run/d1-0.sh").exists());
    }

    #[test]
    fn a_lasting_fault_is_taken_back_at_boot_and_tried_again_until_it_is() {
        let shell = machine();
        let arm = ["d1-0", "38", LASTING, BEFORE_THE_CLUSTER];
        let script = format!("{SECOND_TIME}\n{}", NOT_AT_BOOT.replace("ID", "d1-0"));
        assert!(shell.run(ARM, &arm, &script).status.success());
        let unit = shell.read("units/quorate-drill-boot-d1-0.service");
        assert!(unit.contains("\nBefore=etcd.service "), "{unit}");
        // Those who come after it are not held up by a first try that failed.
        shell.program(
            "systemd-run",
            r#"echo "$@" >>DIR/later; for last; do :; done; /bin/sh DIR/lasting/until-done "$last""#,
        );
        shell.restart();
        assert!(shell.read("later").contains("until-done"), "{}", shell.read("later"));
        assert_eq!(shell.read("reverted"), "done\n");
        assert_eq!(shell.left_at_boot(), 0);
        assert!(!shell.path("lasting/d1-0.sh").exists());
        // Nor is anything done at the next boot, or by an operator who comes back.
        shell.restart();
        assert!(shell.run(REVERT, &["d1-0", LASTING], "").status.success());
        assert_eq!(shell.read("reverted"), "done\n");
    }

    #[test]
    fn nothing_is_taken_back_while_another_script_is_at_work() {
        let shell = machine();
        revert(&shell, "echo back >>DIR/order");
        let inject =
            "flock /run/quorate-drill/lock /bin/sh -c 'touch DIR/begun; /bin/sleep 0.5; echo broken >>DIR/order' &
while [ ! -e DIR/begun ]; do /bin/sleep 0.02; done";
        let both = format!("{inject}\n{REVERT}\nwait");
        assert!(shell.run(&both, &["d1-0", FLEETING], "").status.success());
        assert_eq!(shell.read("order"), "broken\nback\n");
    }

    #[test]
    fn haproxy_is_the_clusters_own_unless_the_vip_is_others() {
        let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  kubernetes: {version: v1.36.3}\n  balancer: haproxy\n  endpoint: {vip: 10.0.0.100, port: 8443, on: control-planes}\n  machines:\n    - {name: m1, address: 10.0.0.1, roles: [control-plane]}\n";
        let (spec, _) = quorate_spec::load(text, "cluster.yaml").unwrap();
        let script = |foreign| {
            let text = "stop {haproxy}; stop {keepalived}";
            filled(text, &spec, &spec.machines[0], "eth0", "quorate", foreign)
        };
        assert_eq!(script(false), "stop haproxy-quorate; stop keepalived-quorate");
        assert_eq!(script(true), "stop haproxy; stop keepalived");
    }
}
