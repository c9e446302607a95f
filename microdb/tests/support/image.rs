//! A file system in memory: folders, files and their bytes.
//!
//! - The content of a file is a list of pages. Images share a page until one of them writes to it.
//!   So a test can hold thousands of disks that differ in a few sectors.
//! - Files and folders keep their number for ever, also without a name, like the inodes of open
//!   files.
//!
//! Deliberately absent: durability and pending writes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Size of a shared page in bytes.
const PAGE: usize = 4096;
/// Maximum size of a file in bytes, larger than any file of a test. An engine that exceeds it has
/// trusted a damaged length.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 30;

/// Number of a file or folder; the root folder has 0.
pub(crate) type NodeId = usize;
/// Number of the root folder.
pub(crate) const ROOT: NodeId = 0;

/// The bytes of one file. An absent page reads as zeros.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    len: u64,
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

impl Content {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` with the bytes from `offset` on, up to the end of the file. Returns their
    /// number.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let len = (out.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        let mut done = 0;
        while done < len {
            let at = offset as usize + done;
            let (page, within) = (at / PAGE, at % PAGE);
            let step = (PAGE - within).min(len - done);
            match &self.pages[page] {
                Some(bytes) => out[done..done + step].copy_from_slice(&bytes[within..within + step]),
                None => out[done..done + step].fill(0),
            }
            done += step;
        }
        len
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(0, &mut bytes);
        bytes
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.set_len(self.len.max(offset + bytes.len() as u64));
        let mut done = 0;
        while done < bytes.len() {
            let at = offset as usize + done;
            let (page, within) = (at / PAGE, at % PAGE);
            let step = (PAGE - within).min(bytes.len() - done);
            let to = Arc::make_mut(self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE])));
            to[within..within + step].copy_from_slice(&bytes[done..done + step]);
            done += step;
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        assert!(len <= FILE_BYTES_MAX, "a file of {len} bytes");
        self.pages.resize((len as usize).div_ceil(PAGE), None);
        let within = len as usize % PAGE;
        if len < self.len && within > 0 {
            // Bytes after the new end are zeroed, because they must read as zeros if the file grows
            // again.
            if let Some(Some(page)) = self.pages.last_mut() {
                Arc::make_mut(page)[within..].fill(0);
            }
        }
        self.len = len;
    }

    pub(crate) fn flip(&mut self, bit: u64) {
        let mut byte = [0];
        self.read(bit / 8, &mut byte);
        self.write(bit / 8, &[byte[0] ^ (1 << (bit % 8))]);
    }
}

/// A file or a folder.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Folder(BTreeMap<String, NodeId>),
    File(Content),
}

/// A whole file system. A clone is cheap: it copies only a list of pointers.
#[derive(Clone)]
pub(crate) struct Image {
    nodes: Vec<Arc<Node>>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            nodes: vec![Arc::new(Node::Folder(BTreeMap::new()))],
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files = self.files();
        f.debug_map()
            .entries(files.iter().map(|(path, node)| (path, self.file(*node).len())))
            .finish()
    }
}

impl Image {
    /// Returns an image with these files and all folders on their paths.
    pub(crate) fn of_files<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut image = Self::default();
        for (path, bytes) in files {
            let path = Path::new(path);
            let mut folder = ROOT;
            for name in names(path.parent().unwrap_or(path)) {
                folder = image.folder(folder).get(&name).copied().unwrap_or_else(|| {
                    let node = image.add(Node::Folder(BTreeMap::new()));
                    image.folder_mut(folder).insert(name, node);
                    node
                });
            }
            let node = image.add(Node::File(Content::of(bytes)));
            image.folder_mut(folder).insert(names(path).pop().unwrap(), node);
        }
        image
    }

    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(Arc::new(node));
        self.nodes.len() - 1
    }

    pub(crate) fn is_folder(&self, node: NodeId) -> bool {
        matches!(*self.nodes[node], Node::Folder(_))
    }

    pub(crate) fn folder(&self, node: NodeId) -> &BTreeMap<String, NodeId> {
        match &*self.nodes[node] {
            Node::Folder(names) => names,
            Node::File(_) => panic!("node {node} is a file"),
        }
    }

    pub(crate) fn folder_mut(&mut self, node: NodeId) -> &mut BTreeMap<String, NodeId> {
        match Arc::make_mut(&mut self.nodes[node]) {
            Node::Folder(names) => names,
            Node::File(_) => panic!("node {node} is a file"),
        }
    }

    pub(crate) fn file(&self, node: NodeId) -> &Content {
        match &*self.nodes[node] {
            Node::File(content) => content,
            Node::Folder(_) => panic!("node {node} is a folder"),
        }
    }

    pub(crate) fn file_mut(&mut self, node: NodeId) -> &mut Content {
        match Arc::make_mut(&mut self.nodes[node]) {
            Node::File(content) => content,
            Node::Folder(_) => panic!("node {node} is a folder"),
        }
    }

    /// Returns the number of the file or folder at `path`.
    pub(crate) fn find(&self, path: &Path) -> io::Result<NodeId> {
        names(path).iter().try_fold(ROOT, |folder, name| {
            if !self.is_folder(folder) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            self.folder(folder)
                .get(name)
                .copied()
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    /// Returns the number of the folder that contains `path`, and the last name of `path`.
    pub(crate) fn parent(&self, path: &Path) -> io::Result<(NodeId, String)> {
        let mut names = names(path);
        let name = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = self.find(&names.iter().collect::<PathBuf>())?;
        if !self.is_folder(folder) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok((folder, name))
    }

    /// Returns every named file with its path, sorted by path.
    pub(crate) fn files(&self) -> Vec<(PathBuf, NodeId)> {
        let mut found = Vec::new();
        let mut todo = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, folder)) = todo.pop() {
            for (name, node) in self.folder(folder) {
                let entry = (path.join(name), *node);
                if self.is_folder(*node) {
                    todo.push(entry);
                } else {
                    found.push(entry);
                }
            }
        }
        found.sort();
        found
    }

    /// Returns the total size of all named files in bytes. A file with two names counts twice.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.files().iter().map(|(_, node)| self.file(*node).len()).sum()
    }

    /// Returns the numbers of all files, also of those without a name.
    pub(crate) fn file_nodes(&self) -> Vec<NodeId> {
        (0..self.nodes.len())
            .filter(|node| !self.is_folder(*node))
            .collect()
    }

    /// Returns `true` if both images have files at the same paths with the same bytes. An absent
    /// page counts as different from a page of zeros.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.files(), other.files());
        ours.len() == theirs.len()
            && ours
                .iter()
                .zip(&theirs)
                .all(|((path, node), (path_other, node_other))| {
                    path == path_other && self.file(*node) == other.file(*node_other)
                })
    }
}

/// Returns the names along a path from the root. A relative path is treated as if it began at the
/// root.
pub(crate) fn names(path: &Path) -> Vec<String> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect()
}
