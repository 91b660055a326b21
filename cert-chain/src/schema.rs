//! How this crate's types look in JSON, for the description of an API (OpenAPI 3.1).

use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use crate::enrolment::EnrolmentId;
use crate::{Digest32, Generation, HashAlgorithm, HostName, Tenant, TpmName, VmId, VrotId};

/// A type that is a string in JSON.
macro_rules! string {
    ($name:ty, $description:literal, $object:ident => $constraint:expr) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let $object = ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($description));
                Schema::from($constraint).into()
            }
        }

        impl ToSchema for $name {}
    };
}

string!(VmId, "Number of a virtual machine.", object => uuid(object));
string!(VrotId, "Number of a virtualized root of trust.", object => uuid(object));
string!(
    Tenant,
    "Whose virtual machine it is.",
    object => object.pattern(Some("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"))
);
string!(
    HostName,
    "Full name of a host: one label in the DNS domain of its issuer.",
    object => object.examples(["host-1.demo.example"])
);
string!(
    Digest32,
    "A SHA-256 value in hexadecimal.",
    object => object.pattern(Some("^[0-9a-f]{64}$"))
);
string!(
    TpmName,
    "Name of an object in a TPM: nameAlg, followed by the digest of its public area, in \
     hexadecimal.",
    object => object.pattern(Some("^([0-9a-f]{2})+$"))
);
string!(
    HashAlgorithm,
    "Hash algorithm of a PCR bank.",
    object => object.enum_values(Some(["sha1", "sha256", "sha384", "sha512"]))
);

string!(
    EnrolmentId,
    "Ties the messages of one enrolment together.",
    object => object.pattern(Some("^[0-9a-f]{32}$"))
);

impl PartialSchema for Generation {
    fn schema() -> RefOr<Schema> {
        let object = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(0))
            .description(Some(
                "Counts the identities that a vRoT has had; rises with each sanctioned restore or copy.",
            ));
        Schema::from(object).into()
    }
}

impl ToSchema for Generation {}

fn uuid(object: ObjectBuilder) -> ObjectBuilder {
    object.format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
}
