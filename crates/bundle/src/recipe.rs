//! What a bundle is made of: `bundles/<kubernetes version>.yaml` and the go.mod files next to it.
//!
//! Recipes are compiled into the program; [`Recipes::from_directory`] reads them from a checkout instead.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, io_error};

const EMBEDDED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// Where recipes are read from.
#[derive(Clone, Debug)]
pub enum Recipes {
    Embedded,
    Directory(PathBuf),
}

/// One bundle: a file `bundles/<version>.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub kubernetes: String,
    pub components: Vec<Component>,
    #[serde(default)]
    pub images: Vec<ImageRecipe>,
}

/// One upstream project at one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    pub name: String,
    pub version: String,
    pub licence: String,
    pub source: Source,
    pub binaries: Vec<Binary>,
    #[serde(default)]
    pub downloads: Vec<Download>,
}

/// How to compile a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Directory below `bundles/` with its go.mod and go.sum.
    pub directory: String,
    #[serde(default)]
    pub cgo: bool,
    #[serde(default)]
    pub tags: Vec<String>,
    pub ldflags: String,
    /// Files the compiler needs and the Debian packages they are in.
    #[serde(default)]
    pub needs: Vec<Need>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    pub file: String,
    pub package: String,
}

/// One program of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binary {
    pub name: String,
    /// Go package path of its `main`.
    pub package: String,
    /// Where it belongs on a machine; `/usr/local/bin/<name>` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// One official release artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Download {
    pub url: String,
    /// URL of the published checksum file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<String>,
    /// Architecture → SHA-256 of the artefact.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pinned: BTreeMap<String, String>,
    /// Binary's name → its path in the archive; the empty path means that the artefact is the binary.
    pub take: BTreeMap<String, String>,
}

/// One container image, written from the binaries of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecipe {
    pub name: String,
    #[serde(default)]
    pub also: Vec<String>,
    /// Path in the image → binary's name; `quorate` is this program.
    pub files: BTreeMap<String, String>,
    pub entrypoint: Vec<String>,
    /// Debian packages of the building machine to add.
    #[serde(default)]
    pub userland: Vec<String>,
}

impl Recipes {
    /// The recipe for Kubernetes `version` (`v1.36.3`; the `v` may be missing).
    pub fn load(&self, version: &str) -> Result<Recipe> {
        let wanted = if version.starts_with('v') {
            version.to_owned()
        } else {
            format!("v{version}")
        };
        let known = self.versions()?;
        if !known.contains(&wanted) {
            return Err(Error::UnknownVersion { wanted, known });
        }
        let name = format!("{wanted}.yaml");
        let bad = |reason: String| Error::Recipe {
            name: name.clone(),
            reason,
        };
        let text = String::from_utf8(self.file(&name)?).map_err(|error| bad(error.to_string()))?;
        let recipe: Recipe = serde_saphyr::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let findings = recipe.findings();
        if findings.is_empty() {
            Ok(recipe)
        } else {
            Err(bad(findings.join("; ")))
        }
    }

    /// The Kubernetes versions there are recipes for, sorted.
    pub fn versions(&self) -> Result<Vec<String>> {
        let names: Vec<String> = match self {
            Self::Embedded => EMBEDDED.iter().map(|(name, _)| (*name).to_owned()).collect(),
            Self::Directory(directory) => fs::read_dir(directory)
                .map_err(io_error("read recipes from", directory))?
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
        };
        let mut versions: Vec<String> = names
            .iter()
            .filter_map(|name| name.strip_suffix(".yaml"))
            .map(str::to_owned)
            .collect();
        versions.sort();
        Ok(versions)
    }

    /// The content of a file below `bundles/`.
    pub(crate) fn file(&self, name: &str) -> Result<Vec<u8>> {
        match self {
            Self::Embedded => EMBEDDED
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, content)| content.to_vec())
                .ok_or_else(|| Error::Recipe {
                    name: name.to_owned(),
                    reason: "there is no such file".into(),
                }),
            Self::Directory(directory) => {
                let path = directory.join(name);
                fs::read(&path).map_err(io_error("read recipe", path))
            }
        }
    }
}

impl Recipe {
    /// Contradictions inside the recipe.
    fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let mut binaries: Vec<&str> = vec!["quorate"];
        for component in &self.components {
            for binary in &component.binaries {
                if binaries.contains(&binary.name.as_str()) {
                    findings.push(format!("binary {} is named twice", binary.name));
                }
                binaries.push(&binary.name);
            }
            for name in component.downloads.iter().flat_map(|download| download.take.keys()) {
                if !component.binaries.iter().any(|binary| &binary.name == name) {
                    findings.push(format!(
                        "a download of {} has {name}, which is not one of its binaries",
                        component.name
                    ));
                }
            }
        }
        for image in &self.images {
            for name in image.files.values() {
                if !binaries.contains(&name.as_str()) {
                    findings.push(format!("image {} wants {name}, which no component has", image.name));
                }
            }
        }
        findings
    }
}

impl Binary {
    pub(crate) fn install_path(&self) -> String {
        self.path
            .clone()
            .unwrap_or_else(|| format!("/usr/local/bin/{}", self.name))
    }
}

impl Download {
    /// Fills in `{version}`, `{bare}`, `{arch}` and, for `sums`, `{url}`.
    pub(crate) fn resolved(&self, version: &str, arch: &str) -> Self {
        let fill = |text: &str| {
            text.replace("{version}", version)
                .replace("{bare}", version.trim_start_matches('v'))
                .replace("{arch}", arch)
        };
        let url = fill(&self.url);
        Self {
            sums: self.sums.as_ref().map(|sums| fill(&sums.replace("{url}", &url))),
            pinned: self.pinned.clone(),
            take: self
                .take
                .iter()
                .map(|(name, path)| (name.clone(), fill(path)))
                .collect(),
            url,
        }
    }
}

/// Reads a go.mod or go.sum of `directory`.
pub(crate) fn module_files(recipes: &Recipes, directory: &str) -> Result<Vec<(&'static str, Vec<u8>)>> {
    ["go.mod", "go.sum"]
        .into_iter()
        .map(|name| Ok((name, recipes.file(&format!("{directory}/{name}"))?)))
        .collect()
}

/// The checkout's recipes when `path` is one, for `--sources`.
pub(crate) fn from_option(path: Option<&Path>) -> Recipes {
    path.map_or(Recipes::Embedded, |path| Recipes::Directory(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_recipe_is_sound_and_has_its_modules() {
        let versions = Recipes::Embedded.versions().unwrap();
        assert!(versions.contains(&"v1.36.3".to_owned()));
        for version in versions {
            let recipe = Recipes::Embedded.load(&version).unwrap();
            assert_eq!(recipe.kubernetes, version);
            for component in &recipe.components {
                let files = module_files(&Recipes::Embedded, &component.source.directory).unwrap();
                let module = String::from_utf8_lossy(&files[0].1).into_owned();
                for binary in &component.binaries {
                    assert!(
                        module.contains(&binary.package),
                        "{} is no tool of {}",
                        binary.package,
                        component.name
                    );
                }
                assert!(
                    module.contains(&format!(" {}", component.version)),
                    "{} {}",
                    component.name,
                    component.version
                );
                let taken: Vec<_> = component
                    .downloads
                    .iter()
                    .flat_map(|download| download.take.keys())
                    .collect();
                assert_eq!(
                    taken.len(),
                    component.binaries.len(),
                    "{}: each binary is downloaded once",
                    component.name
                );
            }
        }
    }

    #[test]
    fn embedded_recipes_are_those_of_the_checkout() {
        let checkout = Recipes::Directory(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bundles"));
        assert_eq!(
            checkout.load("1.36.3").unwrap(),
            Recipes::Embedded.load("v1.36.3").unwrap()
        );
    }

    #[test]
    fn an_unknown_version_names_the_known_ones() {
        let error = Recipes::Embedded.load("v9.9.9").unwrap_err().to_string();
        assert!(
            error.contains("no recipe for Kubernetes v9.9.9") && error.contains("v1.36.3"),
            "{error}"
        );
    }

    #[test]
    fn urls_are_filled_in() {
        let recipe = Recipes::Embedded.load("v1.36.3").unwrap();
        let etcd = recipe
            .components
            .iter()
            .find(|component| component.name == "etcd")
            .unwrap();
        let download = etcd.downloads[0].resolved("v3.6.16", "arm64");
        assert_eq!(
            download.url,
            "https://github.com/etcd-io/etcd/releases/download/v3.6.16/etcd-v3.6.16-linux-arm64.tar.gz"
        );
        assert_eq!(download.take["etcdctl"], "etcd-v3.6.16-linux-arm64/etcdctl");
        for component in &recipe.components {
            for download in &component.downloads {
                let text = format!("{:?}", download.resolved(&component.version, "amd64"));
                assert!(
                    !text.contains("{version}") && !text.contains("{arch}") && !text.contains("{url}"),
                    "{text}"
                );
            }
        }
    }
}
