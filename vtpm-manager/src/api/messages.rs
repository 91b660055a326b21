//! Schemas of the messages of an enrolment, for the description: their fields, and what tells them
//! apart.

use std::borrow::Cow;
use std::marker::PhantomData;

use cert_chain::enrolment::{Answer, Certificate, Challenge, Message, Request};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Object, RefOr};
use utoipa::{PartialSchema, ToSchema};

pub(super) type HostEnrolmentRequest = Sent<Request>;
pub(super) type HostEnrolmentChallenge = Sent<Challenge>;
pub(super) type HostEnrolmentAnswer = Sent<Answer>;
pub(super) type HostEnrolmentCertificate = Sent<Certificate>;

/// A message as it travels: with its type and the version of its form.
pub(super) struct Sent<M>(PhantomData<M>);

impl<M: Message + PartialSchema> PartialSchema for Sent<M> {
    fn schema() -> RefOr<Schema> {
        let RefOr::T(Schema::Object(mut message)) = M::schema() else {
            // No message is anything else than an object.
            return M::schema();
        };
        let pattern = format!("^{}$", M::TYPE);
        let kind = ObjectBuilder::new().schema_type(Type::String);
        let version = ObjectBuilder::new().schema_type(Type::Integer);
        for (name, field) in [
            ("type", kind.pattern(Some(pattern)).build()),
            ("version", version.minimum(Some(1)).maximum(Some(1)).build()),
        ] {
            require(&mut message, name, field);
        }
        Schema::Object(message).into()
    }
}

fn require(message: &mut Object, name: &str, field: Object) {
    message
        .properties
        .insert(name.to_owned(), Schema::Object(field).into());
    message.required.push(name.to_owned());
}

impl<M: Message + ToSchema> ToSchema for Sent<M> {
    fn name() -> Cow<'static, str> {
        M::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        M::schemas(schemas);
    }
}
