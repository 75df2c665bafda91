//! Generates Rust from the `.proto` files, without `protoc`, and a list of all their fields for the test that none is
//! ever changed.

use std::fmt::Write;

const FILES: [&str; 7] = [
    "rswarm/v1/api.proto",
    "rswarm/v1/cluster.proto",
    "rswarm/v1/insight.proto",
    "rswarm/v1/tasks.proto",
    "rswarm/v1/types.proto",
    "rswarm/v1/store.proto",
    "peers/etcd.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let mut fields = String::new();
    for file in descriptors
        .file
        .iter()
        .filter(|file| file.package() == "rswarm.v1" || file.package() == "rswarm.v1.store")
    {
        let package = file.package();
        file.message_type.iter().try_for_each(|message| list(&mut fields, package, message))?;
        file.enum_type.iter().try_for_each(|choices| list_choices(&mut fields, package, choices))?;
    }
    let to = std::path::Path::new(&std::env::var("OUT_DIR")?).join("fields.txt");
    std::fs::write(to, fields)?;
    // Ordered maps make encodings a function of the value, and `Bytes` spares copies on the raft path.
    tonic_prost_build::configure().btree_map(".").bytes(".").compile_fds(descriptors)?;
    Ok(())
}

type Message = prost_types::DescriptorProto;
type Choices = prost_types::EnumDescriptorProto;

/// One line for each field: its name and number, and all that its encoding depends on.
fn list(to: &mut String, within: &str, message: &Message) -> std::fmt::Result {
    let name = format!("{within}.{}", message.name());
    for field in &message.field {
        let alternative = field.oneof_index.filter(|_| !field.proto3_optional());
        let alternative = alternative.map(|at| message.oneof_decl[at as usize].name());
        let alternative = alternative.map(|of| format!(", one of {of}")).unwrap_or_default();
        let kind = field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase();
        let label = field.label().as_str_name().trim_start_matches("LABEL_").to_lowercase();
        writeln!(
            to,
            "{name}.{} = {}: {label} {kind}{}{alternative}",
            field.name(),
            field.number(),
            field.type_name(),
        )?;
    }
    message.nested_type.iter().try_for_each(|nested| list(to, &name, nested))?;
    message.enum_type.iter().try_for_each(|choices| list_choices(to, &name, choices))
}

fn list_choices(to: &mut String, within: &str, choices: &Choices) -> std::fmt::Result {
    let name = format!("{within}.{}", choices.name());
    choices.value.iter().try_for_each(|value| writeln!(to, "{name}.{} = {}", value.name(), value.number()))
}
