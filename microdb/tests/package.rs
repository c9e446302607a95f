//! Tests that the published package is complete: its documents link only to files inside the
//! package or to the web, and those in its folder `docs` equal the documents of the repository.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::path::{Path, PathBuf};

/// Returns the targets of all links in a document, without their anchors. Links within the document
/// are left out.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let links = text.split("](").skip(1).filter_map(|link| link.split_once(')'));
    let targets = links.filter_map(|(target, _)| target.split('#').next());
    targets.filter(|target| !target.is_empty())
}

#[test]
fn links_of_packaged_documents_lead_into_the_package_or_to_the_web() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(package.join("docs")).unwrap();
    let mut documents: Vec<PathBuf> = docs.map(|entry| entry.unwrap().path()).collect();
    documents.push(package.join("README.md"));
    let mut links = 0;
    for document in documents {
        for target in targets(&std::fs::read_to_string(&document).unwrap()) {
            links += 1;
            let is_here = document.parent().unwrap().join(target).exists();
            let leaves = target.split('/').any(|part| part == "..");
            assert!(
                target.starts_with("https://") || is_here && !leaves,
                "{}: {target}",
                document.display()
            );
        }
    }
    assert!(links >= 4, "{links} links were found");
}

#[test]
fn packaged_documents_are_those_of_the_tree() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (packaged, source) in [("design.md", "microdb.md"), ("format.md", "format.md")] {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        assert_eq!(
            read(package.join("docs").join(packaged)),
            read(package.join("../docs").join(source)),
            "{packaged}"
        );
    }
}
