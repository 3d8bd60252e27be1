//! What kubeadm does to a machine and a cluster, as far as a plan sees it.

use quorate_machine::FakeMachine;
use quorate_machine::proto::ExecOutput;
use quorate_pki::inventory::{Ca, CertificateWanted, Holder, Owner, Place};
use quorate_pki::issue::Authority;
use quorate_plan::paths;
use quorate_spec::Bootstrap;
use serde_json::{Value, json};

use super::{CLIENT_CONF, Member, World, active, text};

const PODS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
const CONFIG_MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";

impl World {
    pub(super) fn is_kubeadm(&self) -> bool {
        self.spec.kubernetes.bootstrap == Bootstrap::Kubeadm
    }

    /// The kubelet runs, and so does what its manifests say.
    pub(super) fn runs_pod(machine: &FakeMachine, pod: &str) -> bool {
        active(machine, "kubelet.service") && text(machine, &manifest(pod)).is_some()
    }

    pub(super) fn kubeadm(&self, machine: &FakeMachine, words: &[&str]) -> ExecOutput {
        let done = match words {
            ["init", "--config", config] => self.init(machine, config),
            ["init", "phase", "etcd", ..] => self.pod(machine, "etcd"),
            ["init", "phase", "control-plane", "apiserver", ..] => self.pod(machine, "kube-apiserver"),
            ["init", "phase", "control-plane", name, ..] => self.pod(machine, &format!("kube-{name}")),
            ["join", "--config", config] => self.join(machine, config),
            ["join", "--config", config, skip] if !skip.contains("etcd-join") => self.admit(machine, config),
            ["join", "--config", _, skip] if skip.contains("kubelet-wait-bootstrap") => self.servers(machine),
            ["join", "--config", _, _] => self.kubelet_starts(machine),
            ["reset", "--config", _] => self.reset(machine),
            ["certs", "renew", conf, "--config", _] => {
                machine.put_file(&format!("/etc/kubernetes/{conf}"), client_kubeconfig(0), 0o600);
                Ok(())
            }
            other => Err(format!("kubeadm {other:?} is not known here")),
        };
        match done {
            Ok(()) => ExecOutput {
                status: Some(0),
                ..ExecOutput::default()
            },
            Err(error) => ExecOutput {
                status: Some(1),
                stderr: error.into(),
                ..ExecOutput::default()
            },
        }
    }

    fn init(&self, machine: &FakeMachine, config: &str) -> Result<(), String> {
        let config = text(machine, config).ok_or("no configuration")?;
        let document = |kind: &str| {
            config
                .split("---\n")
                .find(|part| part.contains(&format!("kind: {kind}\n")))
                .unwrap_or_default()
                .to_owned()
        };
        {
            let mut state = self.state();
            if state.members.is_empty() {
                state.next_id += 1;
                let member = self.member(machine, state.next_id, false);
                state.members.push(member);
            }
            assert!(state.members.len() == 1, "a cluster is founded beside another");
            state.objects.insert(
                format!("{CONFIG_MAPS}/kubeadm-config"),
                json!({"data": {"ClusterConfiguration": document("ClusterConfiguration")}}),
            );
            state.objects.insert(
                format!("{CONFIG_MAPS}/kubelet-config"),
                json!({"data": {"kubelet": document("KubeletConfiguration")}}),
            );
        }
        let token = config
            .lines()
            .find_map(|line| line.trim().strip_prefix("token: "))
            .ok_or("no token")?
            .trim_matches('"');
        let (id, secret) = token.split_once('.').ok_or("no token")?;
        self.state().objects.insert(
            format!("/api/v1/namespaces/kube-system/secrets/bootstrap-token-{id}"),
            json!({"stringData": {"token-id": id, "token-secret": secret}}),
        );
        machine.put_file("/etc/kubernetes/super-admin.conf", "system:masters", 0o600);
        self.data(machine);
        for pod in PODS {
            self.pod(machine, pod)?;
        }
        self.kubelet_starts(machine)
    }

    fn join(&self, machine: &FakeMachine, config: &str) -> Result<(), String> {
        self.may_join(machine, config)?;
        self.kubelet_starts(machine)
    }

    fn may_join(&self, machine: &FakeMachine, config: &str) -> Result<(), String> {
        let config = text(machine, config).ok_or("no configuration")?;
        if text(machine, CLIENT_CONF).is_some() {
            return Err("[ERROR FileAvailable--etc-kubernetes-kubelet.conf]".into());
        }
        let name = quorate_machine::Machine::name(machine).to_owned();
        if !self.admits(&config) {
            return Err("the token is not valid".into());
        }
        let ready = self
            .object(&format!("/api/v1/nodes/{name}"))
            .is_some_and(|node| node.pointer("/status/conditions/0/status") == Some(&json!("True")));
        if ready {
            return Err(format!("a Node with name {name:?} and status \"Ready\" already exists"));
        }
        Ok(())
    }

    /// A control plane's join until its etcd member votes.
    fn admit(&self, machine: &FakeMachine, config: &str) -> Result<(), String> {
        self.may_join(machine, config)?;
        let name = quorate_machine::Machine::name(machine).to_owned();
        let before = self.has_quorum();
        // kubelet-start comes first.
        machine.put_file("/etc/kubernetes/bootstrap-kubelet.conf", "", 0o600);
        {
            let mut state = self.state();
            assert!(
                !state.members.iter().any(|member| member.name == name || member.learner),
                "etcd's membership was not reconciled before {name} joins"
            );
            state.next_id += 1;
            let member = self.member(machine, state.next_id, true);
            state.members.push(member);
        }
        if self.dies_in_join.swap(false, std::sync::atomic::Ordering::Relaxed) {
            return Err("killed".into());
        }
        self.data(machine);
        self.pod(machine, "etcd")?;
        self.kubelet_runs(machine);
        if let Some(member) = self.state().members.iter_mut().find(|member| member.name == name) {
            member.learner = false;
        }
        assert!(!before || self.has_quorum(), "{name} took the quorum away");
        Ok(())
    }

    /// And from there on.
    fn servers(&self, machine: &FakeMachine) -> Result<(), String> {
        if text(machine, &manifest("etcd")).is_none() {
            return Err("etcd has not admitted this machine".into());
        }
        for pod in &PODS[1..] {
            self.pod(machine, pod)?;
        }
        Ok(())
    }

    /// The token's Secret is there, made by the plan or, from its configuration, by `kubeadm init`.
    fn admits(&self, config: &str) -> bool {
        let field = |object: &Value, field: &str| {
            let found = object.pointer(&format!("/stringData/{field}")).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        self.state().objects.iter().any(|(path, object)| {
            path.contains("/secrets/bootstrap-token-")
                && config.contains(&format!(
                    "{}.{}",
                    field(object, "token-id"),
                    field(object, "token-secret")
                ))
        })
    }

    fn reset(&self, machine: &FakeMachine) -> Result<(), String> {
        let mut state = machine.state();
        if let Some(unit) = state.units.get_mut("kubelet.service") {
            unit.active = false;
        }
        let gone = |path: &str| {
            path.starts_with("/etc/kubernetes/manifests/")
                || path.starts_with("/var/lib/kubelet/")
                || (path.starts_with("/etc/kubernetes/") && path.ends_with(".conf") && !path.contains("flannel"))
        };
        state.files.retain(|path, _| !gone(path));
        Ok(())
    }

    fn pod(&self, machine: &FakeMachine, pod: &str) -> Result<(), String> {
        let patch = format!("/etc/quorate/kubeadm/patches/{pod}0+merge.yaml");
        let annotations = text(machine, &patch).ok_or("no patch")?;
        machine.put_file(&manifest(pod), annotations, 0o600);
        let name = quorate_machine::Machine::name(machine);
        let inputs = text(machine, &manifest(pod)).unwrap_or_default();
        let inputs = inputs
            .lines()
            .find_map(|line| line.trim().strip_prefix("quorate.dev/inputs: "));
        self.state().objects.insert(
            format!("/api/v1/namespaces/kube-system/pods/{pod}-{name}"),
            json!({
                "metadata": {"annotations": {"quorate.dev/inputs": inputs}},
                "status": {"containerStatuses": [{"ready": true}]},
            }),
        );
        Ok(())
    }

    fn kubelet_starts(&self, machine: &FakeMachine) -> Result<(), String> {
        let name = quorate_machine::Machine::name(machine).to_owned();
        let base = self
            .object(&format!("{CONFIG_MAPS}/kubelet-config"))
            .and_then(|found| {
                found
                    .pointer("/data/kubelet")
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            })
            .unwrap_or_default();
        let patch = text(machine, "/etc/quorate/kubeadm/patches/kubeletconfiguration0+merge.yaml").unwrap_or_default();
        machine.put_file("/var/lib/kubelet/config.yaml", format!("{base}{patch}"), 0o644);
        let spec = self.spec.machine(&name).ok_or("no such machine")?;
        machine.put_file(
            "/var/lib/kubelet/kubeadm-flags.env",
            format!("KUBELET_KUBEADM_ARGS=\"--node-ip={}\"\n", spec.address),
            0o644,
        );
        machine.put_file(paths::KUBELET_CLIENT, "certificate and key", 0o600);
        let server = self.spec.endpoint_url_for(spec);
        machine.put_file(CLIENT_CONF, format!("server: {server}\n"), 0o600);
        self.kubelet_runs(machine);
        Ok(())
    }

    fn kubelet_runs(&self, machine: &FakeMachine) {
        let mut state = machine.state();
        state.units.entry("kubelet.service".into()).or_default().active = true;
    }

    fn member(&self, machine: &FakeMachine, id: u64, learner: bool) -> Member {
        let name = quorate_machine::Machine::name(machine).to_owned();
        let address = self.spec.machine(&name).map(|machine| machine.address.to_string());
        Member {
            id,
            peer: format!("https://{}:2380", address.unwrap_or_default()),
            name,
            learner,
            started: true,
        }
    }

    fn data(&self, machine: &FakeMachine) {
        let mut state = machine.state();
        let directory = state.files.get(&self.spec.etcd.data_dir).cloned().unwrap();
        for folder in ["member", "member/wal"] {
            let path = format!("{}/{folder}", self.spec.etcd.data_dir);
            state.files.insert(path, directory.clone());
        }
    }
}

/// A kubeconfig with a client certificate for a year, that many days old.
pub fn client_kubeconfig(days_ago: u64) -> String {
    let age = std::time::Duration::from_secs(days_ago * 86_400);
    let then = std::time::SystemTime::now() - age;
    let then = then.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let then = i64::try_from(then).unwrap();
    let ca = Authority::create(Ca::Cluster, then).unwrap();
    let wanted = CertificateWanted {
        id: "client".into(),
        holder: Holder::Operator,
        place: Place::Files {
            certificate: String::new(),
            key: String::new(),
        },
        ca: Ca::Cluster,
        common_name: "client".into(),
        organizations: Vec::new(),
        dns: Vec::new(),
        ips: Vec::new(),
        server: false,
        client: true,
        days: 365,
        owner: Owner::root(),
    };
    let issued = ca.issue(&wanted, then).unwrap();
    quorate_run::kubeconfig("demo", "https://127.0.0.1", ca.certificate_pem(), "client", &issued)
        .expose()
        .to_owned()
}

fn manifest(pod: &str) -> String {
    format!("{}/{pod}.yaml", paths::STATIC_PODS)
}
