//! The promises about dependencies: a true MSRV, free licences, and nothing to install for file locks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--all-features",
            "--locked",
        ])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The names of the packages that `package` is built from, without those of its tests.
fn tree(package: &str) -> Vec<String> {
    cargo_tree(&["--package", package, "--target", "all"])
}

/// The same for `portalock` with these features only.
fn tree_of_features(features: &str) -> Vec<String> {
    cargo_tree(&[
        "--package",
        "portalock",
        "--no-default-features",
        "--features",
        features,
    ])
}

fn cargo_tree(which: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}"])
        .args(which)
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let packages: BTreeSet<_> = text
        .lines()
        .map(|line| {
            line.trim_end_matches(" (*)")
                .trim_end_matches(" (proc-macro)")
        })
        .filter(|line| !line.is_empty())
        .collect();
    packages
        .into_iter()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

fn version(text: &str) -> Vec<u32> {
    let mut parts: Vec<_> = text
        .split(['.', '-'])
        .take(3)
        .map(|part| part.parse().unwrap())
        .collect();
    parts.resize(3, 0);
    parts
}

#[test]
fn no_dependency_needs_a_newer_rust_than_we_declare() {
    let packages = packages();
    let by_name: HashMap<_, _> = packages
        .iter()
        .map(|package| (package["name"].as_str().unwrap(), package))
        .collect();
    let ours = by_name["portalock-core"]["rust_version"]
        .as_str()
        .expect("the workspace declares its MSRV");
    for package in &packages {
        let Some(theirs) = package["rust_version"].as_str() else {
            continue;
        };
        assert!(
            version(theirs) <= version(ours),
            "{} needs Rust {theirs}, we promise {ours}",
            package["name"]
        );
    }
}

#[test]
fn every_dependency_has_a_free_licence() {
    let free = [
        "MIT",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "CDLA-Permissive-2.0",
        "ISC",
        "MIT-0",
        "Unlicense",
        "Zlib",
        "0BSD",
    ];
    for package in packages() {
        let licence = package["license"]
            .as_str()
            .unwrap_or_default()
            .replace(['(', ')'], "")
            .replace('/', " OR ");
        // Every part of an AND must offer a free licence.
        for part in licence.split(" AND ") {
            let offered = part
                .split(" OR ")
                .map(str::trim)
                .any(|one| free.contains(&one) || one == "Unicode-3.0");
            assert!(
                offered,
                "{}: {licence:?} offers nothing on the list",
                package["name"]
            );
        }
    }
}

#[test]
fn core_knows_no_service() {
    let tree = tree("portalock-core");
    for client in [
        "redis",
        "etcd-client",
        "cap-std",
        "fs4",
        "rusqlite",
        "tonic",
    ] {
        assert!(
            !tree.iter().any(|name| name == client),
            "portalock-core depends on {client}"
        );
    }
}

#[test]
fn file_locks_need_a_rust_toolchain_and_nothing_else() {
    // Packages that compile C, call protoc, or search a system library.
    let heavy = [
        "cc",
        "cmake",
        "pkg-config",
        "bindgen",
        "prost-build",
        "tonic-build",
        "openssl-sys",
        "ring",
    ];
    for package in ["portalock-fs", "portalock-examples", "portalock-with-lock"] {
        let tree = tree(package);
        for name in heavy {
            assert!(
                !tree.iter().any(|found| found == name),
                "{package} is built with {name}"
            );
        }
    }
}

#[test]
fn no_client_of_a_service_comes_without_its_feature() {
    let clients = BTreeMap::from([
        ("fs", vec!["cap-std", "fs4"]),
        ("redis", vec!["redis"]),
        ("etcd", vec!["etcd-client", "tonic"]),
        ("postgres", vec!["tokio-postgres"]),
        ("metrics", vec!["metrics"]),
        ("testkit", vec!["portalock-testkit"]),
    ]);
    for feature in clients.keys() {
        let tree = tree_of_features(feature);
        for (of, names) in &clients {
            for name in names {
                assert_eq!(
                    tree.iter().any(|found| found == name),
                    of == feature,
                    "feature {feature}: {name}"
                );
            }
        }
    }
}

#[test]
fn nothing_is_built_in_two_versions_but_what_the_page_names() {
    let page = fs::read_to_string(workspace().join("docs/dependencies.md")).unwrap();
    let named = page.split("Built in two versions").nth(1).unwrap();
    for features in [
        "fs",
        "redis",
        "etcd",
        "postgres",
        "fs,redis,etcd,postgres,tls,metrics,testkit",
    ] {
        let tree = tree_of_features(features);
        for pair in tree.windows(2).filter(|pair| pair[0] == pair[1]) {
            let name = format!("`{}`", pair[0]);
            assert!(named.contains(&name), "{features}: {name} is built twice");
        }
    }
}

#[test]
fn the_page_of_dependencies_is_true() {
    let page = fs::read_to_string(workspace().join("docs/dependencies.md")).unwrap();
    for feature in ["fs", "redis", "etcd", "postgres", "metrics", "testkit"] {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{feature}`")))
            .unwrap();
        let counted: usize = row.split('|').nth(2).unwrap().trim().parse().unwrap();
        assert_eq!(
            counted,
            tree_of_features(feature).len(),
            "crates with {feature}"
        );
    }
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        if !name.starts_with("portalock")
            || package["publish"].is_array()
            || name == "portalock-with-lock"
        {
            continue;
        }
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency_name = dependency["name"].as_str().unwrap();
            if dependency["kind"].is_null() && !dependency_name.starts_with("portalock") {
                assert!(
                    page.contains(&format!("`{dependency_name}`")),
                    "{name}: {dependency_name} is not justified"
                );
            }
        }
    }
}

#[test]
fn each_package_is_checked_with_each_of_its_features() {
    let checked = fs::read_to_string(workspace().join(".ci/features")).unwrap();
    let published = packages()
        .into_iter()
        .filter(|package| package["source"].is_null() && !package["publish"].is_array());
    for package in published {
        let name = package["name"].as_str().unwrap();
        let Some(line) = checked
            .lines()
            .find(|line| line.split(' ').next() == Some(name))
        else {
            panic!(".ci/features has no line for {name}");
        };
        for feature in package["features"].as_object().unwrap().keys() {
            assert!(
                // A default is one or more of the others, and those of the program are those of `portalock`.
                feature == "default"
                    || name == "portalock-with-lock"
                    || line.split(' ').any(|named| named == feature),
                ".ci/features: {name} has the feature {feature}, too"
            );
        }
    }
}
