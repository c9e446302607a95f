use std::sync::atomic::{AtomicUsize, Ordering};

use imt_ring::NodeName;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::cluster::channel::connection::WAITING_MAX;
use crate::cluster::channel::message::{
    Confirm, Keyed, OrderCommand, OrderWork, Question, Read, Reply, Request,
};
use crate::domain::order::OrderId;

/// A test service that counts frames and requests. It answers a read of an order with the order's
/// id. A read of the order `large` gets an answer that is too large for a frame, and a read of the
/// order `dropped` is dropped. Requests other than reads of orders and confirmations are stored in
/// `kept`.
#[derive(Default)]
struct Echo {
    frames: AtomicUsize,
    requests: AtomicUsize,
    kept: Mutex<Vec<Asked>>,
}

impl Service for Echo {
    fn take(self: Arc<Self>, requests: Vec<Asked>) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(requests.len(), Ordering::Relaxed);
        for asked in requests {
            match asked.question.clone() {
                Question::Read(Read::Order(order)) if order.as_str() == "large" => {
                    let reply = Reply::Failed("x".repeat(frame::PAYLOAD_BYTES_MAX));
                    asked.caller.answer(asked.epoch, reply);
                }
                Question::Read(Read::Order(order)) if order.as_str() == "dropped" => drop(asked),
                Question::Read(Read::Order(order)) => {
                    asked.caller.answer(asked.epoch, Reply::Busy(order.to_string()));
                }
                Question::Confirm(_) => asked.caller.forget(),
                _ => self.kept.lock().push(asked),
            }
        }
    }
}

fn request(question: Question) -> Request {
    Request {
        id: 0,
        volume: NodeName::new("ada").unwrap(),
        epoch: 3,
        deadline_ms: 1_000,
        question,
    }
}

fn read(order: &str) -> Request {
    request(Question::Read(Read::Order(OrderId::parse(order).unwrap())))
}

fn dialer(secret: &str) -> TcpDialer {
    let encryption = crate::config::PeerEncryption::BetweenMachines;
    TcpDialer::new(secret, Protection::new(encryption).unwrap())
}

/// Starts a listener that serves connections. Returns its address, its service, and its task.
async fn listen(secret: &str) -> (SocketAddr, Arc<Echo>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (echo, key) = (Arc::new(Echo::default()), PeerKey::derive(secret));
    let service = Arc::clone(&echo);
    let serving = tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (key, service) = (key.clone(), Arc::clone(&service) as Arc<dyn Service>);
            open.spawn(async move { serve_stream(stream, &key, service).await });
        }
    });
    (address, echo, serving)
}

#[tokio::test]
async fn many_requests_share_frames_and_each_gets_its_answer() {
    let (address, echo, _serving) = listen("open").await;
    let channels = Channels::new(dialer("open"), Arc::default());
    let connection = channels.connection(address);
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..1_000 {
        let connection = Arc::clone(&connection);
        asked.spawn(async move {
            let order = number.to_string();
            let answer = connection.ask(read(&order)).await.unwrap();
            assert_eq!((answer.epoch, answer.reply), (3, Reply::Busy(order)));
        });
    }
    asked.join_all().await;
    assert_eq!(echo.requests.load(Ordering::Relaxed), 1_000);
    assert!(echo.frames.load(Ordering::Relaxed) < 100);
    assert!(Arc::ptr_eq(&connection, &channels.connection(address)));
}

#[tokio::test]
async fn a_dropped_request_is_answered_with_a_failure() {
    let (address, _, _serving) = listen("open").await;
    let channels = Channels::new(dialer("open"), Arc::default());
    let answer = channels.connection(address).ask(read("dropped")).await.unwrap();
    assert!(matches!(answer.reply, Reply::Failed(_)), "{answer:?}");
}

#[tokio::test]
async fn messages_that_fit_no_frame_are_refused_and_the_connection_stays() {
    let (address, _, _serving) = listen("open").await;
    let channels = Channels::new(dialer("open"), Arc::default());
    let connection = channels.connection(address);
    let answer = connection.ask(read("large")).await.unwrap();
    assert_eq!(answer.reply, Reply::TooLarge);
    let keyed = Keyed {
        key: "key".to_owned(),
        path: "/order/17/cancel".to_owned(),
        body: vec![0; frame::PAYLOAD_BYTES_MAX].into(),
    };
    let large = request(Question::Command(OrderCommand {
        order: OrderId::parse("17").unwrap(),
        work: OrderWork::Cancel,
        is_repeated: false,
        keyed: Some(keyed),
    }));
    assert_eq!(connection.ask(large).await, Err(Unanswered::TooLarge));
    assert!(connection.ask(read("small")).await.is_ok());
}

#[tokio::test]
async fn a_node_with_another_secret_is_not_answered() {
    let (address, echo, _serving) = listen("open").await;
    let channels = Channels::new(dialer("shut"), Arc::default());
    let answer = channels.connection(address).ask(read("1")).await;
    assert!(matches!(answer, Err(Unanswered::Broken(_))), "{answer:?}");
    assert_eq!(echo.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn waiting_requests_fail_when_the_connection_ends_and_the_next_one_opens_another() {
    let (address, echo, serving) = listen("open").await;
    let channels = Channels::new(dialer("open"), Arc::default());
    let connection = channels.connection(address);
    let order = OrderId::parse("17").unwrap();
    let waiting = {
        let (connection, order) = (Arc::clone(&connection), order.clone());
        let keeps = Question::Keeps { order, store: 1 };
        tokio::spawn(async move { connection.ask(request(keeps)).await })
    };
    let confirm = Question::Confirm(Confirm {
        order,
        nonce: 1,
        store: 1,
    });
    connection.tell(&request(confirm)).unwrap();
    while echo.requests.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    serving.abort();
    assert!(matches!(waiting.await.unwrap(), Err(Unanswered::Broken(_))));
    assert!(connection.has_ended());
    let other = channels.connection(address);
    assert!(!Arc::ptr_eq(&connection, &other));
    let refused = other.ask(read("1")).await;
    assert!(
        matches!(refused, Err(Unanswered::Broken(_))),
        "nobody listens: {refused:?}"
    );
}

#[tokio::test]
async fn a_request_without_an_answer_is_sent_at_once_by_tell_now() {
    let (address, echo, _serving) = listen("open").await;
    let channels = Channels::new(dialer("open"), Arc::default());
    let confirm = Question::Confirm(Confirm {
        order: OrderId::parse("17").unwrap(),
        nonce: 1,
        store: 1,
    });
    channels.connection(address).tell_now(&request(confirm)).unwrap();
    while echo.requests.load(Ordering::Relaxed) < 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_caller_that_stops_waiting_leaves_nothing_behind() {
    let (address, echo, _serving) = listen("open").await;
    let channels = Channels::new(dialer("open"), Arc::default());
    let connection = channels.connection(address);
    let keeps = Question::Keeps {
        order: OrderId::parse("17").unwrap(),
        store: 1,
    };
    let asking = connection.ask(request(keeps));
    assert!(
        tokio::time::timeout(Duration::from_millis(50), asking)
            .await
            .is_err()
    );
    while echo.requests.load(Ordering::Relaxed) < 1 {
        tokio::task::yield_now().await;
    }
    let late = echo.kept.lock().pop().unwrap();
    late.caller.answer(3, Reply::Kept(true));
    assert!(connection.ask(read("1")).await.is_ok());
}

/// Polls a future once. Returns its result, or `None` if it is not ready.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn a_connection_on_which_too_many_callers_wait_refuses_requests_as_busy() {
    // The connection is never opened, so no caller is answered.
    let connection = Connection::new(&Arc::default());
    let mut asking: Vec<_> = (0..WAITING_MAX)
        .map(|_| Box::pin(connection.ask(read("1"))))
        .collect();
    for asking in &mut asking {
        assert_eq!(poll_once(asking.as_mut()), None);
    }
    assert_eq!(connection.ask(read("1")).await, Err(Unanswered::Busy));
    // A caller that stops waiting makes room for one other.
    asking.pop();
    let mut next = Box::pin(connection.ask(read("1")));
    assert_eq!(poll_once(next.as_mut()), None);
    assert_eq!(connection.ask(read("1")).await, Err(Unanswered::Busy));
}

/// A sink that sends every frame twice into a queue in memory.
struct Pipe(mpsc::Sender<Frame>);

impl FrameSink for Pipe {
    fn send(&mut self, frame: Vec<u8>) -> Transfer<'_, Vec<u8>> {
        Box::pin(async move {
            let header = frame.first_chunk().ok_or(LinkError("no header".to_owned()))?;
            let (_, number) = open_header(header)?;
            let payload = frame[HEADER_BYTES..].to_vec().into();
            for _ in 0..2 {
                let frame = Frame {
                    number,
                    payload: bytes::Bytes::clone(&payload),
                };
                self.0
                    .send(frame)
                    .await
                    .map_err(|_| LinkError("closed".to_owned()))?;
            }
            Ok(frame)
        })
    }
}

struct Drain(mpsc::Receiver<Frame>);

impl FrameSource for Drain {
    fn receive(&mut self) -> Transfer<'_, Option<Frame>> {
        Box::pin(async move { Ok(self.0.recv().await) })
    }
}

#[tokio::test]
async fn a_repeated_frame_is_carried_out_once() {
    let (out, there) = mpsc::channel(8);
    let (back, here) = mpsc::channel(8);
    let echo = Arc::new(Echo::default());
    let service = Arc::clone(&echo) as Arc<dyn Service>;
    let serving = tokio::spawn(async move {
        let link = Link {
            sink: Box::new(Pipe(back)),
            source: Box::new(Drain(there)),
        };
        serve(link, service).await
    });
    let connection = Connection::new(&Arc::default());
    let link = Link {
        sink: Box::new(Pipe(out)),
        source: Box::new(Drain(here)),
    };
    let running = tokio::spawn(Arc::clone(&connection).run(std::future::ready(Ok(link))));
    for number in 0..10 {
        assert!(connection.ask(read(&number.to_string())).await.is_ok());
    }
    connection.close();
    running.await.unwrap();
    serving.await.unwrap().unwrap();
    assert_eq!(echo.requests.load(Ordering::Relaxed), 10);
}
