//! Breaks the parts of a scenario, and takes them back.

use quorate_machine::ErrorKind;
use quorate_pki::inventory::Place;
use quorate_spec::RunAs;

use super::*;

/// A part of a scenario on one machine.
pub(super) enum Broken {
    Script(Injection),
    Applied(Injection),
    Power {
        machine: String,
        _deadman: Deadman,
    },
    Planned {
        machine: String,
        stopped: Injection,
        _deadman: Deadman,
    },
}

const DAY_S: i64 = 86_400;
/// One program after the other: the agent drains, the API server has its grace, etcd writes back what it has.
const STOPPED_WITHIN: Duration = Duration::from_secs(120);
/// In the order in which an administrator stops them: nobody is sent where nothing is any more, and no kubelet starts again
/// what was stopped.
const PLANNED_STOP: &str = "for unit in {keepalived} {haproxy} quorate-agent kubelet kube-scheduler kube-controller-manager kube-apiserver etcd; do
  if enabled $unit || running $unit; then stop $unit; fi
done
sync";
/// The node's own identity may uncordon it.
const PLANNED_START: &str = "for unit in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet quorate-agent {haproxy} {keepalived}; do
  start $unit
done
[ -e /etc/kubernetes/kubelet.conf ] || exit 0
for i in $(seq 30); do
  if kubectl --kubeconfig=/etc/kubernetes/kubelet.conf --request-timeout=2s uncordon {machine} >/dev/null 2>&1; then exit 0; fi
  sleep 1
done
echo '{machine} could not be uncordoned' >&2
exit 1";

/// Files are written in place: owner and mode stay.
const EXPIRE: &str = "kept=/var/lib/quorate/drill/kept-{unit}
[ ! -e $kept ] || { echo 'an earlier drill of this certificate was not taken back' >&2; exit 1; }
umask 077; mkdir -p $kept
cat > $kept/new
cp {certificate} $kept/crt; cp {key} $kept/key.new
sync $kept/crt $kept/key.new
mv $kept/key.new $kept/key
sync $kept
sed -n '/BEGIN CERTIFICATE/,/END CERTIFICATE/p' $kept/new > {certificate}
sed -n '/PRIVATE KEY/,/PRIVATE KEY/p' $kept/new > {key}
rm $kept/new
again {unit}";
const UNEXPIRE: &str = "kept=/var/lib/quorate/drill/kept-{unit}
if [ -e $kept/crt ] && [ -e $kept/key ]; then
  cat $kept/crt > {certificate}; cat $kept/key > {key}
  sync {certificate} {key}
  again {unit}
  rm $kept/key
fi
rm -rf $kept";

/// An agent in a static Pod stays away only without its kubelet.
fn planned_stop(spec: &Spec) -> String {
    match spec.balancer_as {
        RunAs::Unit => PLANNED_STOP.into(),
        RunAs::StaticPod => format!("stop kubelet\n{PLANNED_STOP}"),
    }
}

impl Drill {
    /// Timers for all parts, before the first is broken. `broken` holds what was armed even if a later one could not be.
    pub(super) async fn arm(
        &self,
        parts: &[(String, Fault)],
        after: Duration,
        broken: &mut Vec<Broken>,
    ) -> Result<(), Error> {
        for (number, (name, fault)) in parts.iter().enumerate() {
            self.go_on()?;
            match fault {
                Fault::Script {
                    inject,
                    revert,
                    lasting,
                } => {
                    let mut injection = self.injection(name, number, inject, revert).await?;
                    if *lasting {
                        injection = injection.lasting(BEFORE_THE_CLUSTER);
                    }
                    injection.arm(after).await?;
                    broken.push(Broken::Script(injection));
                }
                Fault::Expired { certificate, unit } => {
                    let injection = self.expired(name, number, certificate, unit).await?;
                    let injection = injection.lasting(BEFORE_THE_CLUSTER);
                    injection.arm(after).await?;
                    broken.push(Broken::Script(injection));
                }
                Fault::Applied { inject, otherwise } => {
                    let injection = self.injection(name, number, inject, otherwise).await?;
                    let injection = injection.lasting(BEFORE_THE_CLUSTER);
                    injection.arm(after).await?;
                    broken.push(Broken::Applied(injection));
                }
                Fault::PowerCut => {
                    let deadman = self.power_deadman(name, after)?;
                    broken.push(Broken::Power {
                        machine: name.clone(),
                        _deadman: deadman,
                    });
                }
                Fault::PlannedRestart => {
                    let after = after + Duration::from_millis(DRAIN_TIMEOUT_MS) + STOPPED_WITHIN;
                    let deadman = self.power_deadman(name, after)?;
                    let stop = planned_stop(&self.session.spec);
                    let stopped = self.injection(name, number, &stop, PLANNED_START).await?;
                    let mut stopped = stopped.within(STOPPED_WITHIN);
                    if !deadman.watches() {
                        // The node stays cordoned over a restart.
                        stopped = stopped.lasting(AFTER_THE_CLUSTER);
                    }
                    // For an operator who vanishes before the power goes; afterwards the timer is gone with it.
                    stopped.arm(after).await?;
                    broken.push(Broken::Planned {
                        machine: name.clone(),
                        stopped,
                        _deadman: deadman,
                    });
                }
            }
        }
        Ok(())
    }

    async fn injection(&self, name: &str, number: usize, inject: &str, revert: &str) -> Result<Injection, Error> {
        let spec = &self.session.spec;
        let on = spec
            .machine(name)
            .ok_or_else(|| Error::Refused(format!("{name} is not in the cluster file")))?;
        let machine = self.machine(name)?.clone();
        let interface = match machine.call(quorate_machine::Request::Network).await? {
            quorate_machine::Response::Network(network) => {
                network.interface_of(on.address).unwrap_or("eth0").to_owned()
            }
            _ => "eth0".into(),
        };
        // The program that connected, whatever build the cluster runs.
        let program = format!(
            "{}/{}/quorate",
            quorate_plan::paths::PROGRAMS,
            self.session.operator.facts().program_sha256
        );
        Ok(Injection::new(
            spec,
            on,
            machine,
            format!("{}-{number}", unique()),
            inject,
            revert,
            &interface,
            &program,
            self.options.foreign_vip,
        ))
    }

    /// A certificate of the inventory as it would be a day after its end, with a key of its own.
    async fn expired(&self, name: &str, number: usize, certificate: &str, unit: &str) -> Result<Injection, Error> {
        let spec = &self.session.spec;
        let inventory = quorate_plan::certificates(spec);
        let cannot = || Error::Refused(format!("{name} has no certificate {certificate} of its own"));
        let wanted = inventory.find(certificate, name).ok_or_else(cannot)?;
        let Place::Files { certificate, key } = &wanted.place else {
            return Err(cannot());
        };
        let ended = jiff::Timestamp::now().as_second() - (i64::from(wanted.days) + 1) * DAY_S;
        let issued = self.session.operator.issue(wanted, ended)?.ok_or_else(cannot)?;
        let fill = |text: &str| {
            text.replace("{certificate}", certificate)
                .replace("{key}", key)
                .replace("{unit}", unit)
        };
        let injection = self.injection(name, number, &fill(EXPIRE), &fill(UNEXPIRE)).await?;
        Ok(injection.input(format!("{}{}", issued.certificate_pem, issued.key_pem.expose())))
    }

    fn power_deadman(&self, machine: &str, after: Duration) -> Result<Deadman, Error> {
        let power = self
            .power
            .as_ref()
            .ok_or_else(|| Error::Refused("nobody can switch the machines off and on".into()))?;
        power.deadman(machine, after).map_err(|message| Error::Power {
            machine: machine.into(),
            message,
        })
    }

    /// Nothing more is broken once the operator wants to end.
    pub(super) fn go_on(&self) -> Result<(), Error> {
        if self.options.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    /// All at once. The moments at which machines lost their power.
    pub(super) async fn inject(&self, broken: &[Broken], observer: &Observer) -> Result<Vec<i64>, Error> {
        self.go_on()?;
        let results = futures_util::future::join_all(broken.iter().map(|part| async move {
            match part {
                Broken::Script(injection) | Broken::Applied(injection) => {
                    injection.inject().await?.map_err(Error::Cannot).map(|()| None)
                }
                Broken::Power { machine, .. } => self.off(machine, observer).await.map(Some),
                Broken::Planned { machine, stopped, .. } => {
                    self.kubectl(
                        machine,
                        &[
                            "drain",
                            machine,
                            "--ignore-daemonsets",
                            "--delete-emptydir-data",
                            "--force",
                            "--timeout=50s",
                        ],
                    )
                    .await?;
                    self.go_on()?;
                    stopped.inject().await?.map_err(Error::Cannot)?;
                    self.off(machine, observer).await.map(|_| None)
                }
            }
        }))
        .await;
        let cuts: Vec<Option<i64>> = results.into_iter().collect::<Result<_, Error>>()?;
        Ok(cuts.into_iter().flatten().collect())
    }

    /// When it was dead.
    async fn off(&self, name: &str, observer: &Observer) -> Result<i64, Error> {
        let cut_us = monotonic_us();
        let took = self.switch(name, |power, name| power.off(name)).await?;
        let dead_us = cut_us + i64::try_from(took.as_micros()).unwrap_or(0);
        observer.gone(name, dead_us);
        if let Some(machine) = self.session.fleet.get(name) {
            machine.forget().await;
        }
        Ok(dead_us)
    }

    /// As often as needed, for as long as it may take; what cannot be taken back is said. The timers on the machines do it
    /// all the same.
    pub(super) async fn take_back(&self, broken: &[Broken], held: &Held<'_>, limit: Duration) -> Vec<String> {
        let ends = Instant::now() + limit;
        let results = futures_util::future::join_all(broken.iter().rev().map(|part| async move {
            loop {
                let result = match part {
                    Broken::Script(injection) => injection.revert().await.map_err(Error::from),
                    Broken::Applied(injection) => self.applied(injection, held).await,
                    Broken::Power { machine, .. } => self.on(machine).await,
                    Broken::Planned { machine, stopped, .. } => self.on_and_uncordoned(machine, stopped).await,
                };
                match result {
                    Ok(()) => return None,
                    Err(error @ Error::NotApplied(_)) => return Some(error.to_string()),
                    // Whoever took the lock over is fenced against this drill; the timers are not.
                    Err(Error::Machine(error)) if error.kind == ErrorKind::LockLost => {
                        return Some(format!("left to the timer on the machine: {error}"));
                    }
                    Err(error) if Instant::now() > ends => return Some(format!("could not be taken back: {error}")),
                    Err(_) => sleep(Duration::from_millis(500)).await,
                }
            }
        }))
        .await;
        results.into_iter().flatten().collect()
    }

    async fn on(&self, name: &str) -> Result<(), Error> {
        self.switch(name, |power, name| power.on(name)).await?;
        if let Some(machine) = self.session.fleet.get(name) {
            machine.forget().await;
        }
        Ok(())
    }

    async fn on_and_uncordoned(&self, name: &str, stopped: &Injection) -> Result<(), Error> {
        self.on(name).await?;
        // If the power never went.
        stopped.revert().await?;
        self.kubectl(name, &["uncordon", name]).await
    }

    /// What an administrator would do; the timer's way if that fails.
    async fn applied(&self, injection: &Injection, held: &Held<'_>) -> Result<(), Error> {
        injection.disarm().await?;
        let session = &self.session;
        let facts = session.gather().await?;
        let plan = quorate_plan::plan(&session.spec, &facts);
        let options = quorate_run::Options::default();
        let done = session
            .execute_under(held.lock, RunId::new(), &plan, &options, &quorate_run::silent())
            .await;
        let trouble = match done {
            Ok(outcome) if outcome.is_complete() => None,
            Ok(outcome) => Some(
                outcome
                    .failures
                    .iter()
                    .map(|failure| format!("{} {}: {}", failure.machine, failure.title, failure.error))
                    .collect::<Vec<_>>()
                    .join("; "),
            ),
            Err(error) => Some(error.to_string()),
        };
        injection.revert().await?;
        trouble.map_or(Ok(()), |trouble| Err(Error::NotApplied(trouble)))
    }

    async fn switch<T: Send + 'static>(
        &self,
        name: &str,
        turn: impl FnOnce(&dyn Power, &str) -> Result<T, String> + Send + 'static,
    ) -> Result<T, Error> {
        let power = self
            .power
            .clone()
            .ok_or_else(|| Error::Refused("nobody can switch the machines off and on".into()))?;
        let machine = name.to_owned();
        let turned = tokio::task::spawn_blocking(move || turn(power.as_ref(), &machine)).await;
        let failed = |message: String| Error::Power {
            machine: name.into(),
            message,
        };
        turned.map_err(|error| failed(error.to_string()))?.map_err(failed)
    }

    /// On another control plane, as the administrator, who is never written there.
    async fn kubectl(&self, not_on: &str, arguments: &[&str]) -> Result<(), Error> {
        let spec = &self.session.spec;
        let kubeconfig = self.session.operator.memory_kubeconfig(spec)?;
        let via = spec
            .control_planes()
            .iter()
            .filter(|machine| machine.name != not_on)
            .find_map(|machine| self.session.fleet.get(&machine.name))
            .ok_or_else(|| Error::Refused("no other control plane".into()))?
            .clone();
        let argv = [KUBECTL, "--kubeconfig=/dev/stdin"].iter().chain(arguments).copied();
        via.exec_ok(Exec::new(argv).stdin(kubeconfig).timeout_ms(DRAIN_TIMEOUT_MS))
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::Shell;

    /// A certificate and its key where the scripts look for them.
    fn machine() -> Arc<Shell> {
        let shell = Shell::new();
        shell.write("data/crt", "good certificate");
        shell.write("data/key", "good key");
        shell.program(
            "systemctl",
            r#"case "$*" in *restart*) echo again >>DIR/restarts ;; esac"#,
        );
        shell.program("systemd-run", "");
        Arc::new(shell)
    }

    fn expired(shell: &Arc<Shell>) -> Injection {
        let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  machines:\n    - {name: m1, address: 10.0.0.1, roles: [control-plane]}\n";
        let (spec, _) = quorate_spec::load(text, "cluster.yaml").unwrap();
        let fill = |text: &str| {
            let at = |name: &str| shell.path(name).display().to_string();
            text.replace("{certificate}", &at("data/crt"))
                .replace("{key}", &at("data/key"))
                .replace("{unit}", "etcd")
        };
        let (inject, revert) = (fill(EXPIRE), fill(UNEXPIRE));
        let (machine, id) = (shell.machine("m1"), "d1-0".to_owned());
        let on = &spec.machines[0];
        let made = Injection::new(&spec, on, machine, id, &inject, &revert, "eth0", "quorate", false);
        let pem = "-----BEGIN CERTIFICATE-----\nold\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nold\n-----END PRIVATE KEY-----\n";
        made.lasting(BEFORE_THE_CLUSTER).input(pem.into())
    }

    fn is_as_before(shell: &Shell, when: &str) {
        assert_eq!(shell.read("data/crt"), "good certificate", "{when}");
        assert_eq!(shell.read("data/key"), "good key", "{when}");
        assert!(!shell.path("lasting/kept-etcd").exists(), "{when}");
        assert_eq!(shell.left_at_boot(), 0, "{when}");
        assert_eq!(shell.read("restarts"), "again\nagain\n", "{when}");
    }

    #[tokio::test]
    async fn an_expired_certificate_is_replaced_by_the_good_one_also_after_a_restart() {
        let shell = machine();
        let injection = expired(&shell);
        injection.arm(Duration::from_secs(38)).await.unwrap();
        injection.inject().await.unwrap().unwrap();
        assert!(shell.read("data/crt").contains("old") && shell.read("data/key").contains("old"));
        assert!(injection.inject().await.is_err(), "the good one is not forgotten");
        shell.restart();
        is_as_before(&shell, "at boot");
        injection.revert().await.unwrap();
        is_as_before(&shell, "once is enough");

        let shell = machine();
        let injection = expired(&shell);
        injection.arm(Duration::from_secs(38)).await.unwrap();
        injection.inject().await.unwrap().unwrap();
        injection.revert().await.unwrap();
        is_as_before(&shell, "by the operator");
    }
}
