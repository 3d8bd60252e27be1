//! Users and groups from `/etc/passwd` and `/etc/group`. A static binary cannot load the C library's name services,
//! and the users Quorate creates are local ones.

use std::{collections::BTreeMap, fs};

use quorate_facts::UserFacts;

use crate::{
    error::{ErrorKind, RemoteError},
    proto::Owner,
};

#[derive(Default)]
pub(super) struct Owners {
    passwd: String,
    group: String,
}

impl Owners {
    pub(super) fn load() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            passwd: read("/etc/passwd"),
            group: read("/etc/group"),
        }
    }

    /// Numbers for an owner; `None` where the present one stays.
    pub(super) fn resolve(&self, owner: &Owner) -> Result<(Option<u32>, Option<u32>), RemoteError> {
        let number = |what: &str, name: &str, table: &str| -> Result<Option<u32>, RemoteError> {
            if name.is_empty() {
                return Ok(None);
            }
            if let Ok(number) = name.parse() {
                return Ok(Some(number));
            }
            let found = entries(table)
                .find(|fields| fields[0] == name)
                .and_then(|fields| fields.get(2)?.parse().ok());
            found
                .map(Some)
                .ok_or_else(|| RemoteError::new(ErrorKind::NotFound, format!("there is no {what} {name:?}")))
        };
        Ok((
            number("user", &owner.user, &self.passwd)?,
            number("group", &owner.group, &self.group)?,
        ))
    }

    pub(super) fn user_name(&self, uid: u32) -> String {
        name(&self.passwd, uid)
    }

    pub(super) fn group_name(&self, gid: u32) -> String {
        name(&self.group, gid)
    }

    pub(super) fn user(&self, name: &str) -> Option<UserFacts> {
        let fields = entries(&self.passwd).find(|fields| fields[0] == name)?;
        let [_, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let groups = entries(&self.group)
            .filter(|group| {
                group
                    .get(3)
                    .is_some_and(|members| members.split(',').any(|member| member == name))
            })
            .map(|group| group[0].to_owned())
            .collect();
        Some(UserFacts {
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.into(),
            shell: shell.into(),
            groups,
        })
    }

    pub(super) fn users(&self, names: &[String]) -> BTreeMap<String, Option<UserFacts>> {
        names.iter().map(|name| (name.clone(), self.user(name))).collect()
    }
}

fn entries(table: &str) -> impl Iterator<Item = Vec<&str>> {
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| fields.len() >= 4)
}

fn name(table: &str, number: u32) -> String {
    let number = number.to_string();
    entries(table)
        .find(|fields| fields[2] == number)
        .map_or(number.clone(), |fields| fields[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let owners = Owners {
            passwd: "root:x:0:0:root:/root:/bin/bash\netcd:x:998:997::/var/lib/etcd:/usr/sbin/nologin\n+nis\n".into(),
            group: "root:x:0:\netcd:x:997:\nssl-cert:x:110:postgres,etcd\n".into(),
        };
        assert_eq!(
            owners.resolve(&Owner::new("etcd", "ssl-cert")).unwrap(),
            (Some(998), Some(110))
        );
        assert_eq!(owners.resolve(&Owner::new("", "12")).unwrap(), (None, Some(12)));
        assert_eq!(
            owners.resolve(&Owner::new("nobody", "")).unwrap_err().message,
            "there is no user \"nobody\""
        );
        assert_eq!(
            (owners.user_name(998), owners.group_name(5)),
            ("etcd".into(), "5".into())
        );
        assert_eq!(owners.user("etcd").unwrap().groups, ["ssl-cert"]);
    }
}
