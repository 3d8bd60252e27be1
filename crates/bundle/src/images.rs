//! The bundle's images, written from its binaries.
use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    BuildOptions, Event,
    error::{Error, Result, io_error},
    manifest::BlobKind,
    oci::{self, Entry, Image},
    pack,
    recipe::ImageRecipe,
    unit::{Product, Unit, UnitCache},
    userland::Collector,
};

/// The name recipes use for this program.
const QUORATE: &str = "quorate";

/// `None` when the image holds the quorate program and there is none.
pub(crate) fn build(
    image: &ImageRecipe,
    arch: &str,
    units: &[Unit],
    options: &BuildOptions,
    cache: &UnitCache,
    userland: &mut Collector,
    progress: &mut dyn FnMut(Event),
) -> Result<Option<Unit>> {
    let fail = |reason: String| Error::Image {
        image: image.name.clone(),
        reason,
    };
    let mut note = |text: String| {
        progress(Event::Note {
            unit: image.name.clone(),
            text,
        })
    };
    let mut contents = BTreeMap::new();
    let (mut version, mut licence) = (env!("CARGO_PKG_VERSION").to_owned(), "Apache-2.0".to_owned());
    for name in image.files.values() {
        if name == QUORATE {
            let Some(program) = &options.quorate else {
                note("left out: no quorate program was given".into());
                return Ok(None);
            };
            if !is_static(program)? {
                return Err(fail(format!(
                    "{} needs shared libraries, which an image of it alone does not have; \
                     build it with `-C target-feature=+crt-static`",
                    program.display()
                )));
            }
            contents.insert(name.clone(), pack::sum_file(program)?.0);
            continue;
        }
        let blob = units
            .iter()
            .flat_map(|unit| &unit.blobs)
            .find(|blob| blob.name == *name);
        let blob = blob.ok_or_else(|| fail(format!("no component has {name}")))?;
        version.clone_from(&blob.version);
        licence.clone_from(&blob.licence);
        contents.insert(name.clone(), blob.sha256.clone());
    }
    let extra = userland.collect(&image.userland)?;
    for text in &extra.notes {
        note(text.clone());
    }
    let origin = match extra.packages.as_slice() {
        [] => "written from this bundle's binaries".to_owned(),
        packages => format!(
            "written from this bundle's binaries and the Debian packages {}",
            packages.join(", ")
        ),
    };
    if !extra.packages.is_empty() {
        licence = format!("{licence} AND LicenseRef-Debian-packages");
    }

    let hash = UnitCache::hash(&(
        "image, its layer compressed",
        image,
        arch,
        &contents,
        &extra.sums,
        &version,
        &licence,
        &origin,
    ))?;
    let make = |work: &Path| -> Result<Vec<Product>> {
        let mut entries = extra.entries.clone();
        entries.extend(base_entries());
        for (path, name) in &image.files {
            let source = match (&options.quorate, name.as_str()) {
                (Some(program), QUORATE) => program.clone(),
                _ => unpack_binary(name, units, work)?,
            };
            entries.insert(path.clone(), Entry::File { source, mode: 0o755 });
        }
        let mut references = vec![image.name.clone()];
        references.extend(image.also.iter().cloned());
        let file = work.join("image.tar");
        let image = Image {
            references,
            architecture: arch.to_owned(),
            version: version.clone(),
            licence: licence.clone(),
            entrypoint: image.entrypoint.clone(),
            entries,
        };
        oci::write(&image, &file)?;
        Ok(vec![Product {
            file,
            name: image.references[0].clone(),
            kind: BlobKind::Image,
            version: version.clone(),
            origin: origin.clone(),
            licence: licence.clone(),
            path: None,
            mode: "0644",
            also: image.references[1..].to_vec(),
        }])
    };
    let name = format!("image-{}", image.name);
    cache.get_or_make(&name, &hash, make).map(Some)
}

/// What every image has: names for the usual users, a world-writable /tmp, and a resolver order.
fn base_entries() -> BTreeMap<String, Entry> {
    let text = |content: &str| Entry::Text {
        content: content.to_owned(),
        mode: 0o644,
    };
    BTreeMap::from([
        (
            "/etc/passwd".to_owned(),
            text(
                "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
            ),
        ),
        (
            "/etc/group".to_owned(),
            text("root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n"),
        ),
        ("/etc/nsswitch.conf".to_owned(), text("hosts: files dns\n")),
        ("/tmp".to_owned(), Entry::Directory { mode: 0o1777 }),
    ])
}

fn unpack_binary(name: &str, units: &[Unit], work: &Path) -> Result<PathBuf> {
    let found = units
        .iter()
        .find_map(|unit| Some((unit, unit.blobs.iter().find(|blob| blob.name == name)?)));
    let Some((unit, blob)) = found else {
        return Err(Error::NoSuchBlob {
            name: name.to_owned(),
            known: Vec::new(),
        });
    };
    let packed = unit.packed(blob);
    let file = work.join(name);
    let mut output = File::create(&file).map_err(io_error("create", &file))?;
    let input = File::open(&packed).map_err(io_error("open", &packed))?;
    let sums = pack::unpack(input, &mut output).map_err(io_error("decompress", &packed))?;
    crate::bundle::check_sum(name, &sums.sha256, &blob.sha256)?;
    Ok(file)
}

/// Whether an ELF program runs without a dynamic linker: it has no PT_INTERP program header (ELF-64, little endian).
fn is_static(program: &Path) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    File::open(program)
        .and_then(|file| file.take(4096).read_to_end(&mut head))
        .map_err(io_error("read the program", program))?;
    let number = |at: usize, length: usize| -> u64 {
        head.get(at..at + length).map_or(0, |bytes| {
            bytes.iter().rev().fold(0, |all, byte| (all << 8) | u64::from(*byte))
        })
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Ok(false);
    }
    let (table, size, count) = (number(32, 8) as usize, number(54, 2) as usize, number(56, 2) as usize);
    Ok((0..count).all(|index| number(table + index * size, 4) != u64::from(PT_INTERP)))
}
