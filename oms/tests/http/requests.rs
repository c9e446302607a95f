//! Generates requests from the OpenAPI document: every operation, except those of the console, with
//! valid, encoded and invalid values. The same seed gives the same requests.

use std::io::Write;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Ids of the orders placed before the first request.
pub(crate) const PLACED: [&str; 6] = ["17", "shop:1", "a.b~c", "-", "x_y", "shop:2"];
/// Largest product id of the stock before the first request.
pub(crate) const PRODUCTS: u32 = 5;
/// Largest store id of the stock before the first request.
pub(crate) const STORES: u32 = 12;

/// A generated request to the API.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// An operation of the API document.
struct Operation {
    method: String,
    path: String,
    parameters: Vec<Value>,
    body: Option<String>,
}

/// The generator of requests.
pub(crate) struct Generator {
    rng: ChaCha8Rng,
    document: Value,
    operations: Vec<Operation>,
    count: u64,
    /// `true` if the body of the request in the making has several megabytes. Such a body is
    /// compressed, because a rejection may otherwise arrive before the client has sent the whole
    /// body.
    is_large: bool,
}

impl Generator {
    pub(crate) fn new(document: Value, seed: u64) -> Generator {
        let mut operations = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            // The console is left out: its state differs between nodes, and its stream of events
            // never ends.
            if path.starts_with("/console/") {
                continue;
            }
            for (method, operation) in methods.as_object().unwrap() {
                let content = operation["requestBody"]["content"].as_object();
                operations.push(Operation {
                    method: method.to_uppercase(),
                    path: path.clone(),
                    parameters: operation["parameters"].as_array().cloned().unwrap_or_default(),
                    body: content.and_then(|content| content.keys().next().cloned()),
                });
            }
        }
        assert!(operations.len() > 15);
        Generator {
            rng: ChaCha8Rng::seed_from_u64(seed),
            document,
            operations,
            count: 0,
            is_large: false,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.random_range(0..bound)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// Returns one of these values at random.
    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// Returns the next request: each operation in turn, with new values each time.
    pub(crate) fn next(&mut self) -> Request {
        let at = self.count as usize % self.operations.len();
        self.count += 1;
        let (path, parameters) = {
            let operation = &self.operations[at];
            (operation.path.clone(), operation.parameters.clone())
        };
        let (mut path, mut query, mut headers) = (path, Vec::new(), Vec::new());
        for parameter in &parameters {
            let name = parameter["name"].as_str().unwrap();
            match parameter["in"].as_str().unwrap() {
                "path" => {
                    let value = self.value(parameter);
                    let value = self.encode(&value, true);
                    path = path.replace(&format!("{{{name}}}"), &value);
                }
                "query" if !self.one_in(3) => {
                    let value = self.value(parameter);
                    query.push(format!("{name}={}", self.encode(&value, false)));
                    if self.one_in(20) {
                        query.push(format!("{name}=1"));
                    }
                }
                // The content coding is chosen later, so that the body matches it in most requests.
                "header" if name != "Content-Encoding" && self.one_in(3) => {
                    let value = self.header_value(name, parameter);
                    headers.push((name.to_owned(), value));
                }
                _ => {}
            }
        }
        if self.one_in(12) {
            query.push(self.pick(&["status=paid", "x", "%20=1", "Limit=1"]).to_owned());
        }
        if self.one_in(25) {
            path.push_str(self.pick(&["/", "/more", "%2F", "//"]));
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let method = self.method(at);
        let mut body = self.body(at);
        self.add_headers(&mut headers, &mut body);
        Request {
            method,
            path,
            headers,
            body,
        }
    }

    fn method(&mut self, at: usize) -> String {
        if self.one_in(8) {
            let any = self.pick(&["HEAD", "OPTIONS", "GET", "POST", "PUT", "PATCH", "DELETE"]);
            return any.to_owned();
        }
        let method = self.operations[at].method.clone();
        if method == "GET" && self.one_in(4) {
            return "HEAD".to_owned();
        }
        method
    }

    fn schema(&self, parameter: &Value) -> Value {
        let schema = &parameter["schema"];
        match schema["$ref"].as_str() {
            Some(reference) => self.document.pointer(&reference[1..]).unwrap().clone(),
            None => schema.clone(),
        }
    }

    /// Returns a value of a parameter, usually one that the schema allows.
    fn value(&mut self, parameter: &Value) -> String {
        let name = parameter["name"].as_str().unwrap();
        let schema = self.schema(parameter);
        if self.one_in(10) {
            return self
                .pick(&[
                    "", " ", "..", "a/b", "\u{e9}", "1e3", "-1", "+1", "01", "1.0", "null", "%",
                ])
                .to_owned();
        }
        if let Some(names) = schema["enum"].as_array() {
            let names: Vec<&str> = names.iter().map(|name| name.as_str().unwrap()).collect();
            let name = self.pick(&names).to_owned();
            return if self.one_in(10) {
                name.to_uppercase()
            } else {
                name
            };
        }
        if schema["type"] == "integer" {
            return self.integer(name, &schema);
        }
        if name == "cursor" {
            return self
                .pick(&[
                    "",
                    "17",
                    "shop:1",
                    "17/announce",
                    "shop:1/deliver",
                    "17/lost",
                    "b~ ",
                    "b~1.2",
                    "alone~0.0",
                    "3.4",
                    "alpha~1.0,beta~1.0",
                    "a~99999999999999999999.0",
                ])
                .to_owned();
        }
        self.order_id()
    }

    fn order_id(&mut self) -> String {
        if self.one_in(6) {
            let long = "x".repeat(65);
            return self
                .pick(&["nobody", "unknown:1", long.as_str(), ".", "a b"])
                .to_owned();
        }
        self.pick(&PLACED).to_owned()
    }

    fn integer(&mut self, name: &str, schema: &Value) -> String {
        let min = schema["minimum"].as_i64().unwrap_or(0);
        let max = schema["maximum"].as_u64().unwrap_or(u64::from(u32::MAX));
        let usual = match name {
            "product" => PRODUCTS,
            "limit" | "top" => 9,
            _ => STORES,
        };
        match self.below(10) {
            0 => min.to_string(),
            1 => max.to_string(),
            2 => (min - 1).to_string(),
            3 => (u128::from(max) + 1).to_string(),
            _ => (self.below(usual as usize) + 1).to_string(),
        }
    }

    /// Encodes a value for a path or query. Sometimes more characters are encoded than necessary,
    /// or the invalid `%ff` is appended.
    fn encode(&mut self, value: &str, in_path: bool) -> String {
        let all = self.one_in(4);
        let mut text = String::new();
        for byte in value.bytes() {
            let is_plain =
                byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) || !in_path && byte == b'/';
            if is_plain && !(all && self.one_in(2)) {
                text.push(byte.into());
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
        if self.one_in(40) {
            text.push_str("%ff");
        }
        text
    }

    fn header_value(&mut self, name: &str, parameter: &Value) -> String {
        if name == "Idempotency-Key" {
            let long = "k".repeat(256);
            if self.one_in(10) {
                return self.pick(&["", long.as_str()]).to_owned();
            }
            // Each request has a separate key. A single node notices a key that is used for two
            // orders, but a pair does not if the orders are in different volumes.
            return format!("key-{}", self.count);
        }
        if name == "X-Stock-As-Of" {
            // The numbers are small, so that a later snapshot often has an equal or higher number.
            return self.pick(&["0", "1", "2", "3", "-1", "1.0", "x", ""]).to_owned();
        }
        self.value(parameter).trim().replace('\u{e9}', "e")
    }

    fn body(&mut self, at: usize) -> Vec<u8> {
        let method = self.operations[at].method.clone();
        let (kind, path) = (self.operations[at].body.clone(), self.operations[at].path.clone());
        match kind.as_deref() {
            Some("text/csv") => self.csv(method == "PUT").into_bytes(),
            Some(_) if path == "/order" => self.order().into_bytes(),
            Some(_) => self.payment().into_bytes(),
            None if self.one_in(8) => b"not asked for".to_vec(),
            None => Vec::new(),
        }
    }

    fn broken_json(&mut self) -> String {
        let large = format!("{{\"id\":\"{}\"}}", "x".repeat(70_000));
        if self.one_in(3) {
            return large;
        }
        self.pick(&[
            "",
            "{",
            "[]",
            "null",
            "{}",
            "{\"id\":17}",
            "\u{0}",
            large.as_str(),
        ])
        .to_owned()
    }

    fn order(&mut self) -> String {
        if self.one_in(6) {
            return self.broken_json();
        }
        let id = if self.one_in(3) {
            self.order_id()
        } else {
            format!("new:{}", self.count)
        };
        let product = self.below(PRODUCTS as usize + 1) as u32 + u32::from(!self.one_in(20));
        let quantity = if self.one_in(10) {
            self.pick(&[&json!(0), &json!(1_000_001), &json!("1"), &json!(1.0)])
                .clone()
        } else {
            json!(self.below(4) + 1)
        };
        json!({"id": id, "products": [{"id": product, "quantity": quantity}]}).to_string()
    }

    fn payment(&mut self) -> String {
        if self.one_in(6) {
            return self.broken_json();
        }
        let transaction = self.pick(&[
            "1",
            "4711",
            "4711.0",
            "0",
            "-1",
            "\"1\"",
            "9007199254740991",
            "9007199254740992",
            "18446744073709551615",
        ]);
        format!("{{\"transaction_id\":{transaction}}}")
    }

    fn csv(&mut self, is_whole: bool) -> String {
        if self.one_in(5) {
            if self.one_in(6) {
                self.is_large = true;
                return "1,1,1\n".repeat(700_000);
            }
            return self
                .pick(&[
                    "",
                    "\n",
                    "1,1\n",
                    "0,1,1\n",
                    "1,0,1\n",
                    "1,10001,1\n",
                    "1,1,-1\n",
                    "a,b,c",
                ])
                .to_owned();
        }
        let mut lines = String::new();
        for store in 1..=STORES {
            for product in 1..=PRODUCTS {
                let is_left_out = if is_whole {
                    self.one_in(6)
                } else {
                    !self.one_in(12)
                };
                if !is_left_out {
                    let quantity = self.below(60);
                    let end = self.pick(&["\n", "\r\n"]);
                    lines.push_str(&format!("{product},{store},{quantity}{end}"));
                }
            }
        }
        if self.one_in(3) {
            let (product, store) = (self.below(9) + 1, self.below(15) + 1);
            lines.push_str(&format!("{product},{store},7\n"));
        }
        lines
    }

    fn add_headers(&mut self, headers: &mut Vec<(String, String)>, body: &mut Vec<u8>) {
        let is_large = std::mem::take(&mut self.is_large);
        if is_large || self.one_in(3) {
            let coding = self.pick(&[
                "gzip",
                "GZIP",
                "x-gzip",
                "identity",
                "br",
                "gzip, identity",
                "gzip, gzip",
            ]);
            headers.push(("content-encoding".to_owned(), coding.to_owned()));
            let layers = coding.to_lowercase().matches("gzip").count();
            let layers = if is_large {
                layers.max(1)
            } else if self.one_in(5) {
                0
            } else {
                layers
            };
            for _ in 0..layers {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(body).unwrap();
                *body = encoder.finish().unwrap();
            }
        }
        let large = "x".repeat(20_000);
        for (name, values) in [
            (
                "accept-encoding",
                &["gzip", "GZIP;q=0.5", "br", "gzip;q=0", "*"][..],
            ),
            ("accept", &["application/json", "text/html"]),
            ("if-none-match", &["*", "\"1\""]),
            ("range", &["bytes=0-1"]),
            ("expect", &["100-continue"]),
            ("te", &["trailers"]),
            ("content-type", &["application/json", "text/csv", "nonsense"]),
            ("x-large", &[large.as_str()]),
            ("x-imt-part", &["1"]),
            ("x-imt-arrival", &["1.0", "x"]),
            ("x-imt-epoch", &["0", "2", "999999"]),
            ("x-imt-deadline-ms", &["0", "1"]),
            ("x-imt-secret", &["guessed"]),
        ] {
            if self.one_in(9) {
                let value = self.pick(values).to_owned();
                headers.push((name.to_owned(), value));
            }
        }
    }
}
