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
