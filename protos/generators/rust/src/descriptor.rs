//! The few fields of google/protobuf/descriptor.proto that say where secrets are: prost-types does not have `debug_redact`.

/// The number of `TYPE_ENUM`.
pub const KIND_ENUM: i32 = 14;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Files {
    #[prost(message, repeated, tag = "1")]
    pub file: Vec<File>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    #[prost(string, tag = "2")]
    pub package: String,
    #[prost(message, repeated, tag = "4")]
    pub message_type: Vec<Message>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub field: Vec<Field>,
    #[prost(message, repeated, tag = "8")]
    pub oneof_decl: Vec<Oneof>,
}

impl Message {
    /// The oneofs that have choices, with their indices.
    pub fn oneofs(&self) -> impl Iterator<Item = (i32, &Oneof)> {
        let has_choices = |index| self.field.iter().any(|field| field.oneof() == Some(index));
        (0..).zip(&self.oneof_decl).filter(move |(index, _)| has_choices(*index))
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Field {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int32, tag = "5")]
    pub kind: i32,
    #[prost(message, optional, tag = "8")]
    pub options: Option<FieldOptions>,
    #[prost(int32, optional, tag = "9")]
    pub oneof_index: Option<i32>,
    #[prost(bool, tag = "17")]
    pub proto3_optional: bool,
}

impl Field {
    /// The oneof that it is a choice of; the oneof of an `optional` field is there only for descriptors.
    pub fn oneof(&self) -> Option<i32> {
        self.oneof_index.filter(|_| !self.proto3_optional)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FieldOptions {
    #[prost(bool, tag = "16")]
    pub debug_redact: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Oneof {
    #[prost(string, tag = "1")]
    pub name: String,
}
