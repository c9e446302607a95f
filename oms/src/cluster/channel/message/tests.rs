use super::*;
use crate::domain::loans::SpentUnits;

fn id(text: &str) -> OrderId {
    OrderId::parse(text).unwrap()
}

fn line(id: u32, quantity: u32) -> Line {
    Line { id, quantity }
}

fn position() -> StockPosition {
    StockPosition {
        incarnation: u64::MAX,
        generation: 3,
        changes: 1 << 40,
    }
}

fn questions() -> Vec<Question> {
    let command = |work, keyed: Option<Keyed>| {
        Question::Command(OrderCommand {
            order: id("shop:1"),
            work,
            is_repeated: keyed.is_some(),
            keyed,
        })
    };
    let keyed = Keyed {
        key: "key".to_owned(),
        path: "/order".to_owned(),
        body: Bytes::from_static(b"{\"id\":\"shop:1\"}"),
    };
    vec![
        command(
            OrderWork::Place([line(1, 2), line(1_000_000, u32::MAX)].into()),
            Some(keyed),
        ),
        command(OrderWork::Pay(u64::MAX), None),
        command(OrderWork::Cancel, None),
        command(OrderWork::Retry(Kind::Deliver), None),
        Question::Read(Read::Order(id("17"))),
        Question::Read(Read::OrderHistory(id("17"))),
        Question::Read(Read::StoreStock(10_000)),
        Question::Read(Read::ProductSales(1_000_000)),
        Question::Read(Read::TopSales(1_000)),
        Question::Traced(
            TraceContext::of_parts(u128::MAX - 5, 7, 1).unwrap(),
            Box::new(Question::Read(Read::Order(id("17")))),
        ),
        Question::FindStore {
            order: id("a"),
            lines: [line(7, 1)].into(),
        },
        Question::Reserve(Reserve {
            order: id("a"),
            nonce: 1 << 63,
            store: 10_000,
            lines: [line(7, 1)].into(),
        }),
        Question::Confirm(Confirm {
            order: id("a"),
            nonce: 5,
            store: 1,
        }),
        Question::Settle {
            order: id("b"),
            settlement: Settlement {
                store: 2,
                lines: Box::default(),
                delivered: true,
                sequence: Some(9),
            },
        },
        Question::Keeps {
            order: id("c"),
            store: 3,
        },
        Question::FollowStock(FollowStock {
            follower: 8,
            known: Some(position()),
            waits: true,
        }),
        Question::Allot(AllotRequest {
            borrower: NodeName::new("bob").unwrap(),
            incarnation: 3,
            sequence: 1 << 40,
            store: 1,
            clears: true,
            spent: vec![SpentUnits {
                order: id("d"),
                nonce: 1 << 62,
                lines: [line(7, 1)].into(),
            }],
            returned: vec![line(8, 2)],
            wanted: vec![line(9, 300), line(10, 1)],
            wants_all: true,
        }),
        Question::Recall(Recall {
            store: 10_000,
            products: vec![7, u32::MAX],
        }),
        Question::ReadStock(ReadStock {
            follower: 8,
            incarnation: 9,
            generation: 10,
            first_row: 11,
        }),
    ]
}

fn replies() -> Vec<Reply> {
    let cells = vec![
        Cell {
            at: 0,
            available: i32::MIN,
        },
        Cell {
            at: u32::MAX,
            available: 7,
        },
    ];
    vec![
        Reply::Moved,
        Reply::Busy("too much waits".to_owned()),
        Reply::Failed("a reason".to_owned()),
        Reply::TooLarge,
        Reply::Http(HttpReply {
            status: 503,
            content_type: Some("application/json".to_owned()),
            retry_after: Some("1".to_owned()),
            replayed: true,
            body: Bytes::from_static(b"{}"),
        }),
        Reply::FoundStore(Some(4)),
        Reply::FoundStore(None),
        Reply::Reserved,
        Reply::Short(cells.clone()),
        Reply::Settled,
        Reply::Kept(true),
        Reply::StockChanges(position(), cells),
        Reply::StockLayout(StockLayout {
            position: position(),
            stores: vec![1, 5],
            products: vec![9, 2, 4],
        }),
        Reply::StockRows(vec![-1, 0, 1]),
        Reply::Allotted {
            incarnation: 3,
            granted: vec![line(9, 300)],
        },
    ]
}

fn request_frame() -> (Vec<Request>, Vec<u8>) {
    let mut bytes = Vec::new();
    let requests: Vec<Request> = (1..)
        .zip(questions())
        .map(|(number, question)| Request {
            id: number * 1_000,
            volume: NodeName::new("ada").unwrap(),
            epoch: 1 << 50,
            deadline_ms: 4_500,
            question,
        })
        .collect();
    requests.iter().for_each(|request| request.encode(&mut bytes));
    (requests, bytes)
}

fn answer_frame() -> (Vec<Answer>, Vec<u8>) {
    let mut bytes = Vec::new();
    let answers: Vec<Answer> = (1..)
        .zip(replies())
        .map(|(id, reply)| Answer { id, epoch: 7, reply })
        .collect();
    answers.iter().for_each(|answer| answer.encode(&mut bytes));
    (answers, bytes)
}

#[test]
fn messages_are_decoded_as_they_were_encoded() {
    let (requests, bytes) = request_frame();
    assert_eq!(decode_requests(&bytes.into()).unwrap(), requests);
    let (answers, bytes) = answer_frame();
    assert_eq!(decode_answers(&bytes.into()).unwrap(), answers);
}

#[test]
fn a_frame_cut_at_any_byte_never_gives_another_message() {
    let (requests, bytes) = request_frame();
    for cut in 0..bytes.len() {
        if let Ok(decoded) = decode_requests(&Bytes::copy_from_slice(&bytes[..cut])) {
            assert_eq!(decoded[..], requests[..decoded.len()], "cut at {cut}");
        }
    }
    let (answers, bytes) = answer_frame();
    for cut in 0..bytes.len() {
        if let Ok(decoded) = decode_answers(&Bytes::copy_from_slice(&bytes[..cut])) {
            assert_eq!(decoded[..], answers[..decoded.len()], "cut at {cut}");
        }
    }
}

#[test]
fn no_flipped_bit_makes_the_decoder_panic() {
    let (_, requests) = request_frame();
    let (_, answers) = answer_frame();
    for bit in 0..requests.len() * 8 {
        let mut bytes = requests.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = decode_requests(&bytes.into());
    }
    for bit in 0..answers.len() * 8 {
        let mut bytes = answers.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = decode_answers(&bytes.into());
    }
}

#[test]
fn requests_and_answers_are_not_taken_for_each_other() {
    let (_, requests) = request_frame();
    let (_, answers) = answer_frame();
    assert!(decode_answers(&requests.into()).is_err());
    assert!(decode_requests(&answers.into()).is_err());
}
