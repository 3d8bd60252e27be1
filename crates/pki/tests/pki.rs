//! Issuing, reading, judging and storing together; cross-checked with the `openssl` program where there is one.

use std::{collections::BTreeMap, net::IpAddr, os::unix::fs::PermissionsExt, path::Path, process::Command};

use quorate_pki::{
    DAY, SecretText, csr,
    inventory::{self, Bootstrap, Ca, EtcdRun, Holder, Host, Inputs, Inventory, Place, inventory},
    issue::{self, Authority},
    read,
    store::{Import, Store},
};

/// 2026-11-21; certificates are then valid for `openssl verify -attime`.
const NOW: i64 = 1_795_219_200;

fn host(name: &str, address: &str) -> Host {
    Host {
        name: name.into(),
        names: Vec::new(),
        addresses: vec![address.parse().unwrap()],
    }
}

fn inputs(bootstrap: Bootstrap) -> Inputs {
    let control_planes = vec![
        host("m1", "10.77.0.11"),
        host("m2", "10.77.0.12"),
        host("m3", "10.77.0.13"),
    ];
    Inputs {
        bootstrap,
        etcd_members: control_planes.clone(),
        control_planes,
        workers: vec![host("m4", "10.77.0.14")],
        etcd: match bootstrap {
            Bootstrap::Binary => EtcdRun::Systemd {
                user: "etcd".into(),
                group: "etcd".into(),
            },
            Bootstrap::Kubeadm => EtcdRun::StaticPod,
        },
        endpoint_names: vec!["api.prod.internal".into()],
        endpoint_addresses: vec!["10.77.0.100".parse().unwrap()],
        service_addresses: vec!["10.96.0.1".parse().unwrap()],
        domain: "cluster.local".into(),
        extra_names: vec!["extra.example.com".into()],
        extra_addresses: Vec::new(),
        kube_proxy: true,
    }
}

fn table() -> Inventory {
    inventory(&inputs(Bootstrap::Binary))
}

fn authorities() -> BTreeMap<Ca, Authority> {
    Ca::ALL.map(|ca| (ca, Authority::create(ca, NOW).unwrap())).into()
}

#[test]
fn every_row_is_issued_as_wanted() {
    let cas = authorities();
    for row in &table().certificates {
        let ca = &cas[&row.ca];
        let issued = ca.issue(row, NOW).unwrap();
        let found = read::certificate_with_key(&issued.certificate_pem, issued.key_pem.expose()).unwrap();
        assert_eq!(
            read::differences(row, &found, ca.found(), NOW),
            Vec::<String>::new(),
            "{}",
            row.id
        );
        assert_eq!(read::chain_ok(&issued.certificate_pem, ca.certificate_pem()), Ok(()));
        assert_eq!((found.not_before, found.not_after), (NOW - 300, NOW + 365 * DAY));
        assert_eq!(found.authority_key_id, ca.found().subject_key_id);
        assert!(found.subject_key_id.is_some() && !found.is_ca);
        for (other, authority) in &cas {
            assert_eq!(
                *other == row.ca,
                read::chain_ok(&issued.certificate_pem, authority.certificate_pem()).is_ok()
            );
        }
    }
}

#[test]
fn the_table_keeps_its_promises() {
    for bootstrap in [Bootstrap::Binary, Bootstrap::Kubeadm] {
        let table = inventory(&inputs(bootstrap));
        let mut seen = std::collections::BTreeSet::new();
        for row in &table.certificates {
            assert!(seen.insert((row.holder.clone(), row.id.clone())), "{} twice", row.id);
            assert!(row.organizations.len() <= 1);
            if let Holder::Machine(_) = row.holder {
                assert!(
                    !row.organizations.contains(&"system:masters".to_owned()),
                    "{} on a machine",
                    row.id
                );
            }
        }
        let api = table.find("apiserver", "m2").unwrap();
        for name in [
            "m2",
            "kubernetes",
            "kubernetes.default.svc.cluster.local",
            "api.prod.internal",
            "extra.example.com",
        ] {
            assert!(api.dns.iter().any(|own| own == name), "{name}");
        }
        for address in ["10.77.0.12", "10.77.0.100", "10.96.0.1", "127.0.0.1", "::1"] {
            assert!(api.ips.contains(&address.parse::<IpAddr>().unwrap()), "{address}");
        }
        assert!(
            !api.ips.contains(&"10.77.0.11".parse::<IpAddr>().unwrap()),
            "another machine's address"
        );
        assert!(
            table
                .find("apiserver-kubelet-client", "m1")
                .unwrap()
                .organizations
                .is_empty()
        );
    }
    let etcd = table().find("etcd-server", "m1").unwrap().clone();
    assert_eq!(etcd.owner.user, "etcd");
    assert!(matches!(etcd.place, Place::Files { ref certificate, .. } if certificate == "/etc/etcd/pki/server.crt"));
    assert!(etcd.server && etcd.client);
    let kubeadm = inventory(&inputs(Bootstrap::Kubeadm));
    let row = kubeadm.find("etcd-peer", "m1").unwrap();
    assert!(matches!(row.place, Place::Files { ref key, .. } if key == "/etc/kubernetes/pki/etcd/peer.key"));
    assert!(kubeadm.find("kube-proxy", "m4").is_none() && table().find("kube-proxy", "m4").is_some());
}

#[test]
fn each_difference_is_named() {
    let (ca, other) = (
        Authority::create(Ca::Cluster, NOW).unwrap(),
        Authority::create(Ca::Cluster, NOW).unwrap(),
    );
    let table = table();
    let row = table.find("apiserver", "m1").unwrap();
    let issued = ca.issue(row, NOW).unwrap();
    let foreign = issue::key_pair().unwrap();
    let good = read::certificate_with_key(&issued.certificate_pem, issued.key_pem.expose()).unwrap();
    let bad_key = read::certificate_with_key(&issued.certificate_pem, foreign.private_pem.expose()).unwrap();
    let wanted = |change: &dyn Fn(&mut inventory::CertificateWanted)| {
        let mut row = row.clone();
        change(&mut row);
        row
    };
    let cases = [
        (
            row.clone(),
            &good,
            &other,
            0,
            "signed by another cluster CA of the same name",
        ),
        (row.clone(), &bad_key, &ca, 0, "its key file does not belong to it"),
        (row.clone(), &good, &ca, 246 * DAY, "expires in 119 days"),
        (row.clone(), &good, &ca, 367 * DAY, "expired 2 days ago"),
        (row.clone(), &good, &ca, -DAY, "not valid yet; compare the clocks"),
        (
            wanted(&|row| row.dns.push("new.example.com".into())),
            &good,
            &ca,
            0,
            "not valid for new.example.com",
        ),
        (
            wanted(&|row| row.dns.retain(|name| name != "extra.example.com")),
            &good,
            &ca,
            0,
            "valid for extra.example.com, which is no longer wanted",
        ),
        (
            wanted(&|row| row.client = true),
            &good,
            &ca,
            0,
            "usage client authentication is missing",
        ),
        (
            wanted(&|row| row.common_name = "x".into()),
            &good,
            &ca,
            0,
            "common name \"kube-apiserver\", wanted \"x\"",
        ),
        (
            wanted(&|row| row.organizations = vec!["o".into()]),
            &good,
            &ca,
            0,
            "organization none, wanted o",
        ),
    ];
    for (row, found, ca, later, reason) in cases {
        assert_eq!(read::differences(&row, found, ca.found(), NOW + later), [reason]);
    }
    // Nothing outlives its CA, and near the CA's end there is no endless re-issuing.
    let late = NOW + 3600 * DAY;
    let last = read::certificate(&ca.issue(row, late).unwrap().certificate_pem).unwrap();
    assert_eq!(last.not_after, ca.found().not_after);
    assert_eq!(read::differences(row, &last, ca.found(), late), Vec::<String>::new());
}

#[test]
fn kubelet_requests_are_judged() {
    let node = Host {
        addresses: vec!["10.77.0.14".parse().unwrap()],
        ..host("m4", "10.77.0.14")
    };
    let nodes = [host("m1", "10.77.0.11"), node];
    let mut row = table().find("kube-proxy", "m4").unwrap().clone();
    row.common_name = "system:node:m4".into();
    row.organizations = vec!["system:nodes".into()];
    row.dns = vec!["m4".into()];
    row.ips = vec!["10.77.0.14".parse().unwrap()];
    let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let node_groups = strings(&["system:nodes", "system:authenticated"]);
    let serving_usages = strings(&["digital signature", "server auth"]);
    let serving = csr::Request {
        signer: csr::SERVING_SIGNER,
        username: "system:node:m4",
        groups: &node_groups,
        usages: &serving_usages,
    };
    let client_usages = strings(&["digital signature", "client auth", "key encipherment"]);
    let client = csr::Request {
        signer: csr::CLIENT_SIGNER,
        usages: &client_usages,
        ..serving
    };
    let join_groups = strings(&["system:bootstrappers", csr::BOOTSTRAP_GROUP]);
    let join = csr::Request {
        username: "system:bootstrap:abcdef",
        groups: &join_groups,
        ..client
    };
    let with = |change: &dyn Fn(&mut inventory::CertificateWanted)| {
        let mut row = row.clone();
        change(&mut row);
        csr::parse(&issue::request(&row).unwrap().1).unwrap()
    };
    let bare = with(&|row| (row.dns, row.ips) = (Vec::new(), Vec::new()));
    let full = with(&|_| {});

    let ca = Authority::create(Ca::Cluster, NOW).unwrap();
    for (request, text) in [(&serving, &full), (&client, &bare), (&join, &bare)] {
        let approved = csr::judge(text, request, &nodes).unwrap();
        assert_eq!(approved.node(), "m4");
        let pem = ca.sign_kubelet(&approved, NOW).unwrap();
        let found = read::certificate(&pem).unwrap();
        assert_eq!(
            (found.server, found.client),
            (approved.is_serving(), !approved.is_serving())
        );
        assert_eq!(
            (found.common_name.as_str(), found.organizations.as_slice()),
            ("system:node:m4", &strings(&["system:nodes"])[..])
        );
        assert_eq!(
            (&found.dns, &found.ips, &found.spki_sha256),
            (&text.dns, &text.ips, &text.spki_sha256)
        );
        assert_eq!(read::chain_ok(&pem, ca.certificate_pem()), Ok(()));
        assert!(
            Authority::create(Ca::Etcd, NOW)
                .unwrap()
                .sign_kubelet(&approved, NOW)
                .is_err()
        );
    }

    let refused = [
        (
            with(&|row| row.ips = vec!["10.77.0.11".parse().unwrap()]),
            serving,
            "10.77.0.11 is not an address of m4",
        ),
        (
            with(&|row| row.ips.push("10.77.0.100".parse().unwrap())),
            serving,
            "10.77.0.100 is not an address of m4",
        ),
        (
            with(&|row| row.dns.push("kubernetes".into())),
            serving,
            "\"kubernetes\" is not a name of m4",
        ),
        (
            with(&|row| row.dns.push("*.m4".into())),
            serving,
            "\"*.m4\" is not a name of m4",
        ),
        (
            bare.clone(),
            serving,
            "a serving certificate must name a host or address",
        ),
        (
            full.clone(),
            client,
            "a client certificate must name no host or address",
        ),
        (
            with(&|row| row.organizations = vec!["system:masters".into()]),
            serving,
            "organization [\"system:masters\"], wanted system:nodes alone",
        ),
        (
            with(&|row| row.organizations = Vec::new()),
            serving,
            "organization [], wanted system:nodes alone",
        ),
        (
            full.clone(),
            csr::Request {
                usages: &client_usages,
                ..serving
            },
            "usage \"server auth\" is missing",
        ),
        (
            bare.clone(),
            csr::Request {
                username: "system:node:m1",
                ..client
            },
            "asked for by \"system:node:m1\", not by the node itself",
        ),
        (
            full.clone(),
            csr::Request {
                username: "system:bootstrap:abcdef",
                groups: &join_groups,
                ..serving
            },
            "asked for by \"system:bootstrap:abcdef\", not by the node itself",
        ),
        (
            full.clone(),
            csr::Request {
                signer: "kubernetes.io/legacy-unknown",
                ..serving
            },
            "signer \"kubernetes.io/legacy-unknown\" is not one of a kubelet's",
        ),
        (
            with(&|row| row.common_name = "admin".into()),
            serving,
            "common name \"admin\", wanted system:node:<node>",
        ),
    ];
    for (text, request, reason) in refused {
        let reasons = csr::judge(&text, &request, &nodes).unwrap_err();
        assert!(reasons.iter().any(|own| own == reason), "{reasons:?} lacks {reason:?}");
    }
    let stranger = with(&|row| row.common_name = "system:node:m9".into());
    let reasons = csr::judge(
        &stranger,
        &csr::Request {
            username: "system:node:m9",
            ..serving
        },
        &nodes,
    )
    .unwrap_err();
    assert_eq!(reasons, ["\"system:node:m9\" is no machine of this cluster"]);

    // A request whose content was changed after signing has no valid proof of the key.
    let pem = issue::request(&row).unwrap().1;
    let line = pem.lines().nth(2).unwrap();
    let swapped: String = line.chars().rev().collect();
    assert!(csr::parse(&pem.replace(line, &swapped)).is_err());
}

#[test]
fn kubeconfigs_and_bundles_are_read() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let (ca, table) = (
        Authority::create(Ca::Cluster, NOW).unwrap(),
        inventory(&inputs(Bootstrap::Kubeadm)),
    );
    let row = table.find("scheduler", "m1").unwrap();
    assert!(matches!(row.place, Place::Kubeconfig { ref path } if path == "/etc/kubernetes/scheduler.conf"));
    let issued = ca.issue(row, NOW).unwrap();
    let (certificate, key) = (
        STANDARD.encode(&issued.certificate_pem),
        STANDARD.encode(issued.key_pem.expose()),
    );
    let text = format!(
        "users:\n- name: x\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: \"{key}\"\n"
    );
    let found = read::kubeconfig_certificate(&text).unwrap().unwrap();
    assert_eq!(read::differences(row, &found, ca.found(), NOW), Vec::<String>::new());
    assert_eq!(found.key_matches, Some(true));
    assert_eq!(
        read::kubeconfig_certificate("    client-certificate: /etc/kubernetes/pki/x.crt\n").unwrap(),
        None
    );
    assert!(read::kubeconfig_certificate("client-certificate-data: %%%").is_err());

    let bundle = format!("{}{}", issued.certificate_pem, ca.certificate_pem());
    let names: Vec<_> = read::bundle(&bundle)
        .unwrap()
        .into_iter()
        .map(|found| found.common_name)
        .collect();
    assert_eq!(names, ["system:kube-scheduler", "kubernetes"]);
    for damaged in [
        "",
        "x",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----",
    ] {
        assert!(read::certificate(damaged).is_err(), "{damaged:?}");
    }
}

#[test]
fn a_key_can_stay_on_its_machine() {
    let (cas, table) = (authorities(), table());
    let row = table.find("etcd-peer", "m3").unwrap();
    let (key, request) = issue::request(row).unwrap();
    let pem = cas[&Ca::Etcd]
        .issue_for_request(row, &csr::parse(&request).unwrap(), NOW)
        .unwrap();
    let found = read::certificate_with_key(&pem, key.expose()).unwrap();
    assert_eq!(
        read::differences(row, &found, cas[&Ca::Etcd].found(), NOW),
        Vec::<String>::new()
    );
}

#[test]
fn the_folder_is_made_once_and_kept_private() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), None);
    let first = store.ensure(NOW).unwrap();
    let second = store.ensure(NOW + DAY).unwrap();
    assert_eq!(first.cluster.certificate_pem(), second.cluster.certificate_pem());
    assert_eq!(
        first.secrets.encryption_key.sha256(),
        second.secrets.encryption_key.sha256()
    );
    assert_eq!(first.service_account.public_pem, second.service_account.public_pem);
    let (id, secret) = first.secrets.bootstrap_token.expose().split_once('.').unwrap();
    assert_eq!(
        (id.len(), secret.len(), id),
        (6, 16, first.secrets.bootstrap_token_id())
    );
    assert_eq!(
        format!("{} {:?}", first.secrets.vrrp_key, first.secrets.vrrp_key),
        "<secret> <secret>"
    );
    let shown = format!("{first:?}");
    for secret in [first.secrets.stats_password.expose(), "PRIVATE KEY"] {
        assert!(!shown.contains(secret));
    }

    let mode = |path: &str| {
        dir.path()
            .join("pki")
            .join(path)
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    for path in ["", "etcd", "secrets"] {
        assert_eq!(mode(path), 0o700, "{path}");
    }
    for path in [
        "ca.key",
        "etcd/ca.key",
        "front-proxy-ca.key",
        "sa.key",
        "secrets/vrrp-key",
    ] {
        assert_eq!(mode(path), 0o600, "{path}");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["pki"]);
    assert!(
        store
            .import(&Import::default(), NOW)
            .unwrap_err()
            .to_string()
            .contains("already")
    );
}

#[test]
fn the_folder_can_be_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let phrase = |text: &str| Some(SecretText::new(text.into()));
    let made = Store::new(dir.path(), phrase("correct horse")).ensure(NOW).unwrap();
    let text = std::fs::read_to_string(dir.path().join("pki/ca.key")).unwrap();
    assert!(text.starts_with("quorate sealed file v1") && !text.contains("PRIVATE KEY"));
    let token = std::fs::read_to_string(dir.path().join("pki/secrets/bootstrap-token")).unwrap();
    assert!(!token.contains(made.secrets.bootstrap_token.expose()));
    let refused = |passphrase| Store::new(dir.path(), passphrase).load(NOW).unwrap_err().to_string();
    assert!(refused(None).ends_with("it is sealed; give the passphrase"));
    assert!(refused(phrase("wrong")).contains("does not open it"));
    // Swapping two sealed files is noticed.
    std::fs::copy(dir.path().join("pki/etcd/ca.key"), dir.path().join("pki/ca.key")).unwrap();
    assert!(refused(phrase("correct horse")).contains("does not open it"));
}

#[test]
fn a_lost_folder_is_fetched_back() {
    let (lost, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = Store::new(lost.path(), None).ensure(NOW).unwrap();
    let mut files = BTreeMap::new();
    for path in [
        "ca.crt",
        "ca.key",
        "etcd/ca.crt",
        "etcd/ca.key",
        "front-proxy-ca.crt",
        "front-proxy-ca.key",
        "sa.key",
    ] {
        let text = std::fs::read_to_string(lost.path().join("pki").join(path)).unwrap();
        files.insert(path.to_owned(), SecretText::new(text));
    }
    let mut import = Import::from_control_plane(&files).unwrap();
    import
        .secrets
        .insert("encryption-key".into(), before.secrets.encryption_key.clone());
    let after = Store::new(new.path(), None).import(&import, NOW).unwrap();
    for ca in Ca::ALL {
        assert_eq!(before.authority(ca).found(), after.authority(ca).found());
    }
    assert_eq!(before.service_account.public_pem, after.service_account.public_pem);
    assert_eq!(
        before.secrets.encryption_key.sha256(),
        after.secrets.encryption_key.sha256()
    );

    files.remove("etcd/ca.key");
    let missing = Import::from_control_plane(&files).unwrap_err();
    assert_eq!(
        missing,
        ["/etc/kubernetes/pki/etcd/ca.key is missing; try another control plane"]
    );
}

fn openssl(dir: &Path, arguments: &[&str]) -> Option<String> {
    let output = match Command::new("openssl").args(arguments).current_dir(dir).output() {
        Ok(output) => output,
        Err(error) => {
            #[allow(clippy::print_stdout)] // the harness shows why nothing was compared
            {
                println!("skipped: no openssl program ({error})");
            }
            return None;
        }
    };
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn openssl_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    if openssl(path, &["version"]).is_none() {
        return;
    }
    let (cas, at) = (authorities(), NOW.to_string());
    let put = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
    for row in &table().certificates {
        let issued = cas[&row.ca].issue(row, NOW).unwrap();
        put("ca.crt", cas[&row.ca].certificate_pem());
        put("leaf.crt", &issued.certificate_pem);
        put("leaf.key", issued.key_pem.expose());
        for (wanted, purpose) in [(row.server, "sslserver"), (row.client, "sslclient")] {
            if wanted {
                let arguments = [
                    "verify",
                    "-x509_strict",
                    "-CAfile",
                    "ca.crt",
                    "-attime",
                    &at,
                    "-purpose",
                    purpose,
                    "leaf.crt",
                ];
                assert_eq!(openssl(path, &arguments).unwrap(), "leaf.crt: OK\n", "{}", row.id);
            }
        }
        let public = openssl(path, &["x509", "-in", "leaf.crt", "-noout", "-pubkey"]).unwrap();
        assert_eq!(openssl(path, &["pkey", "-in", "leaf.key", "-pubout"]).unwrap(), public);
        assert_eq!(
            read::public_key_spki_sha256(&public).unwrap(),
            read::key_spki_sha256(issued.key_pem.expose()).unwrap()
        );
    }
    std::fs::write(
        path.join("ca.pub"),
        openssl(path, &["x509", "-in", "ca.crt", "-noout", "-pubkey"]).unwrap(),
    )
    .unwrap();
    openssl(
        path,
        &["pkey", "-pubin", "-in", "ca.pub", "-outform", "DER", "-out", "ca.der"],
    );
    let digest = openssl(path, &["dgst", "-sha256", "-r", "ca.der"]).unwrap();
    let hash = read::ca_cert_hash(&std::fs::read_to_string(path.join("ca.crt")).unwrap()).unwrap();
    assert_eq!(hash, format!("sha256:{}", digest.split(' ').next().unwrap()));
    let ca = openssl(path, &["x509", "-in", "ca.crt", "-noout", "-text"]).unwrap();
    for line in [
        "X509v3 Basic Constraints: critical",
        "CA:TRUE",
        "Digital Signature, Certificate Sign, CRL Sign",
    ] {
        assert!(ca.contains(line), "{line} not in {ca}");
    }
}

#[test]
fn authorities_in_a_folder_become_an_operators() {
    let now = 1_800_000_000;
    let theirs = tempfile::tempdir().unwrap();
    let pki = Store::new(theirs.path(), None).ensure(now).unwrap();
    let folder = theirs.path().join("pki");
    let ours = tempfile::tempdir().unwrap();
    let import = Import::from_folder(&folder).unwrap();
    let made = Store::new(ours.path(), None).import(&import, now).unwrap();
    for ca in Ca::ALL {
        assert_eq!(
            made.authority(ca).certificate_pem(),
            pki.authority(ca).certificate_pem()
        );
    }
    assert_eq!(made.service_account.public_pem, pki.service_account.public_pem);

    // The cluster's authority alone will do; half of one will not.
    for file in [
        "etcd/ca.crt",
        "etcd/ca.key",
        "front-proxy-ca.crt",
        "front-proxy-ca.key",
        "sa.key",
    ] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    assert_eq!(Import::from_folder(&folder).unwrap().authorities.len(), 1);
    std::fs::remove_file(folder.join("ca.key")).unwrap();
    let wrong = Import::from_folder(&folder).unwrap_err();
    assert_eq!(wrong, ["ca.crt is there without ca.key"]);
    std::fs::remove_file(folder.join("ca.crt")).unwrap();
    let wrong = Import::from_folder(&folder).unwrap_err();
    assert!(wrong[0].starts_with("none of ca.crt"), "{wrong:?}");
}

#[test]
fn existing_authorities_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    if openssl(path, &["version"]).is_none() {
        return;
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    let row = table().find("apiserver", "m1").unwrap().clone();
    let keys: [(&str, &[&str]); 5] = [
        (
            "RSA, PKCS#8",
            &[
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
                "-out",
                "ca.key",
            ],
        ),
        ("RSA, PKCS#1", &["genrsa", "-traditional", "-out", "ca.key", "2048"]),
        (
            "P-256, SEC1 with parameters",
            &["ecparam", "-name", "prime256v1", "-genkey", "-out", "ca.key"],
        ),
        (
            "P-384, PKCS#8",
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-384",
                "-out",
                "ca.key",
            ],
        ),
        ("Ed25519", &["genpkey", "-algorithm", "ED25519", "-out", "ca.key"]),
    ];
    for (kind, generate) in keys {
        openssl(path, generate);
        let subject = "/C=DE/O=Example GmbH/CN=Example Kubernetes CA";
        openssl(
            path,
            &[
                "req", "-x509", "-new", "-key", "ca.key", "-subj", subject, "-days", "100", "-out", "ca.crt",
            ],
        );
        let text = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        let key = SecretText::new(text("ca.key"));
        let ca = Authority::import(Ca::Cluster, &text("ca.crt"), key.clone(), now)
            .unwrap_or_else(|error| panic!("{kind}: {error}"));
        let issued = ca.issue(&row, now).unwrap();
        std::fs::write(path.join("leaf.crt"), &issued.certificate_pem).unwrap();
        assert_eq!(
            openssl(path, &["verify", "-CAfile", "ca.crt", "leaf.crt"]).unwrap(),
            "leaf.crt: OK\n",
            "{kind}"
        );
        assert_eq!(
            read::certificate(&issued.certificate_pem).unwrap().not_after,
            ca.found().not_after,
            "{kind}"
        );

        let other = Authority::create(Ca::Cluster, now).unwrap();
        let foreign = Authority::import(Ca::Cluster, other.certificate_pem(), key.clone(), now).unwrap_err();
        assert!(
            foreign
                .to_string()
                .contains("the key does not belong to the certificate"),
            "{foreign}"
        );
        let leaf = Authority::import(Ca::Cluster, &issued.certificate_pem, issued.key_pem, now).unwrap_err();
        assert!(leaf.to_string().contains("is no CA certificate"), "{leaf}");
        let expired = Authority::import(Ca::Cluster, &text("ca.crt"), key, now + 101 * DAY).unwrap_err();
        assert!(expired.to_string().contains("has expired"), "{expired}");
    }
    // What cannot be used says what can.
    openssl(
        path,
        &[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:1024",
            "-out",
            "weak.key",
        ],
    );
    openssl(
        path,
        &[
            "pkcs8",
            "-topk8",
            "-in",
            "weak.key",
            "-passout",
            "pass:x",
            "-out",
            "sealed.key",
        ],
    );
    let reason = |name: &str| {
        read::key_spki_sha256(&std::fs::read_to_string(path.join(name)).unwrap())
            .unwrap_err()
            .to_string()
    };
    assert!(reason("weak.key").contains("RSA of 2048 to 4096 bits"));
    assert!(reason("sealed.key").contains("it is encrypted; decrypt it first"));
    assert!(reason("ca.crt").contains("no private key among the PEM blocks (CERTIFICATE)"));
}
