//! Controls a headless Chromium with the DevTools protocol over a pair of pipes.
//!
//! The pipes are file descriptors 3 and 4 of the browser, and a zero byte ends each message.
//! Neither a WebSocket nor a port is needed.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use super::HANG;

/// A browser process, and the page that the test controls.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    next_id: u64,
    /// Events that were received during calls, oldest first. Responses to calls are not among them.
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts the browser that the variable `CHROMIUM` names, or else `chromium`. Its page is empty
    /// and has the given size in pixels.
    pub fn start(width: u32, height: u32) -> Self {
        let profile = tempfile::tempdir().expect("a folder for the profile");
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >&2", &program])
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(["--remote-debugging-pipe", "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell starts");
        let mut output = child.stdout.take().expect("standard output is piped");
        let (send, messages) = channel();
        std::thread::spawn(move || {
            let (mut pending, mut block) = (Vec::new(), [0u8; 65_536]);
            while let Ok(read @ 1..) = output.read(&mut block) {
                pending.extend_from_slice(&block[..read]);
                while let Some(end) = pending.iter().position(|byte| *byte == 0) {
                    let message: Vec<u8> = pending.drain(..=end).collect();
                    let message = serde_json::from_slice(&message[..end]).expect("JSON from the browser");
                    let _ = send.send(message);
                }
            }
        });
        let mut browser = Self {
            input: child.stdin.take().expect("standard input is piped"),
            child,
            messages,
            session: None,
            next_id: 0,
            events: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        browser.call("Emulation.setDeviceMetricsOverride", size);
        browser
    }

    /// Calls a method of the DevTools protocol and waits for its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next_id += 1;
        let mut message = json!({ "id": self.next_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.write_all(&bytes).expect("the browser takes calls");
        loop {
            let answer = self.messages.recv_timeout(HANG);
            let mut answer =
                answer.unwrap_or_else(|_| panic!("no answer to {method}; is Chromium installed?"));
            if answer["id"] == self.next_id {
                assert!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    /// Opens an address in the page.
    pub fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert!(opened.get("errorText").is_none(), "{url}: {opened}");
    }

    /// Evaluates a JavaScript expression in the page and returns its value.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut found = self.call("Runtime.evaluate", params);
        assert!(found.get("exceptionDetails").is_none(), "{expression}: {found}");
        found["result"]["value"].take()
    }

    /// Returns the text of the first element that matches a selector, or an empty text.
    pub fn text(&mut self, selector: &str) -> String {
        let selector = json!(selector);
        let text = self.value(&format!("document.querySelector({selector})?.textContent ?? ''"));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Presses and releases a key.
    pub fn press(&mut self, key: &str, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({ "type": kind, "key": key });
            if kind == "keyDown" {
                params["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Types text into the focused element.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Returns the script errors, the console messages, and the warnings and errors of the
    /// browser's log since the start.
    pub fn complaints(&mut self) -> Vec<String> {
        // The browser sends the response to this call after the events of all earlier work of the
        // page.
        self.value("0");
        let is_complaint = |event: &&Value| {
            let level = &event["params"]["entry"]["level"];
            match event["method"].as_str().unwrap_or_default() {
                "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" => true,
                "Log.entryAdded" => level == "error" || level == "warning",
                _ => false,
            }
        };
        let complaints = self.events.iter().filter(is_complaint);
        complaints.map(|event| event["params"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
