//! Schemas of types with a hand-written JSON form, for which `ToSchema` cannot be derived.

use std::borrow::Cow;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::api::problem::Kind;
use crate::domain::order::{ORDER_ID_BYTES_MAX, OrderId};

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

impl PartialSchema for OrderId {
    fn schema() -> RefOr<Schema> {
        let about = "The id of an order, chosen by the shop. It needs no encoding in a path.";
        text()
            .description(Some(about))
            .min_length(Some(1))
            .max_length(Some(ORDER_ID_BYTES_MAX))
            .pattern(Some("^(?!\\.{1,2}$)[A-Za-z0-9._~:-]+$"))
            .into()
    }
}

impl ToSchema for OrderId {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("OrderId")
    }
}

impl PartialSchema for Kind {
    fn schema() -> RefOr<Schema> {
        let clients = || Kind::ALL.into_iter().filter(|kind| !kind.is_between_nodes());
        let meaning = |kind: Kind| format!("- `{}`: {}", kind.texts().slug, kind.texts().meaning);
        let meanings: Vec<String> = clients().map(meaning).collect();
        let about = format!(
            "The kind of a problem. Further kinds may be added.\n\n{}",
            meanings.join("\n")
        );
        text()
            .description(Some(about))
            .enum_values(Some(clients().map(Kind::urn)))
            .into()
    }
}

impl ToSchema for Kind {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("ProblemType")
    }
}
