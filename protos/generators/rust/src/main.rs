//! Writes the Rust stubs of a descriptor set: messages by prost, services by tonic, and a `Debug` without secrets.
//!
//!     credentialbroker-generator DESCRIPTOR_SET FOLDER
//!
//! prost derives `Debug` for every message and knows nothing of `debug_redact`. Messages that have a field of that option
//! are generated without `Debug`; theirs is written here and shows the field's name alone.

use std::fmt::Write as _;
use std::{env, error::Error, fs, path::Path};

mod descriptor;

use prost::Message as _;
use prost_types::FileDescriptorSet;

use descriptor::{Field, Files, Message};

const PACKAGE: &str = "credentialbroker.v1";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().collect();
    let [_, descriptors, folder] = arguments.as_slice() else {
        return Err("usage: credentialbroker-generator DESCRIPTOR_SET FOLDER".into());
    };
    let set = fs::read(descriptors)?;
    let (secret, debug) = redacted(&Files::decode(set.as_slice())?);
    tonic_prost_build::configure()
        .out_dir(folder)
        .build_transport(false)
        .server_mod_attribute(PACKAGE, "#[cfg(feature = \"server\")]")
        .skip_debug(&secret)
        .compile_fds(FileDescriptorSet::decode(set.as_slice())?)?;

    let path = Path::new(folder).join(format!("{PACKAGE}.rs"));
    let generated = fs::read_to_string(&path)?;
    fs::write(&path, generated + &debug)?;
    Ok(())
}

/// Returns the paths of all messages that hold a secret of their own, and the source of their `Debug`. What prost does
/// with a message's path it does with the oneofs of the message too.
fn redacted(set: &Files) -> (Vec<String>, String) {
    let (mut paths, mut source) = (Vec::new(), String::new());
    let ours = set.file.iter().filter(|file| file.package == PACKAGE);
    for message in ours.flat_map(|file| &file.message_type) {
        if !message.field.iter().any(is_secret) {
            continue;
        }
        paths.push(format!(".{PACKAGE}.{}", message.name));
        source.push_str(&debug_of_message(message));
        for (index, oneof) in message.oneofs() {
            let choices: Vec<_> = message.field.iter().filter(|field| field.oneof() == Some(index)).collect();
            source.push_str(&debug_of_oneof(message, &oneof.name, &choices));
        }
    }
    (paths, source)
}

fn is_secret(field: &Field) -> bool {
    field.options.as_ref().is_some_and(|options| options.debug_redact)
}

fn debug_of_message(message: &Message) -> String {
    let name = &message.name;
    let mut fields = String::new();
    for field in message.field.iter().filter(|field| field.oneof().is_none()) {
        let value = match (is_secret(field), field.kind == descriptor::KIND_ENUM) {
            (true, _) => "&format_args!(\"[redacted]\")".to_owned(),
            (false, true) => format!("&self.{}()", field.name),
            (false, false) => format!("&self.{}", field.name),
        };
        let _ = writeln!(fields, "            .field(\"{}\", {value})", field.name);
    }
    for (_, oneof) in message.oneofs() {
        let _ = writeln!(fields, "            .field(\"{0}\", &self.{0})", oneof.name);
    }
    format!(
        "impl ::core::fmt::Debug for {name} {{
    fn fmt(&self, formatter: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{
        formatter
            .debug_struct(\"{name}\")
{fields}            .finish()
    }}
}}
"
    )
}

fn debug_of_oneof(message: &Message, oneof: &str, choices: &[&Field]) -> String {
    let (module, name) = (snake(&message.name), camel(oneof));
    let mut arms = String::new();
    for field in choices {
        let choice = camel(&field.name);
        let (binding, value) =
            if is_secret(field) { ("_", "&format_args!(\"[redacted]\")") } else { ("value", "value") };
        let _ = writeln!(
            arms,
            "            Self::{choice}({binding}) => formatter.debug_tuple(\"{choice}\").field({value}).finish(),"
        );
    }
    format!(
        "impl ::core::fmt::Debug for {module}::{name} {{
    fn fmt(&self, formatter: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{
        match self {{
{arms}        }}
    }}
}}
"
    )
}

/// `ImportIdentityRequest` to `import_identity_request`, as prost names the module of a message.
fn snake(name: &str) -> String {
    let mut result = String::new();
    for (index, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            result.push('_');
        }
        result.push(letter.to_ascii_lowercase());
    }
    result
}

/// `auth_json` to `AuthJson`, as prost names a choice.
fn camel(name: &str) -> String {
    name.split('_').map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect()
}
