//! X02 to X06: templates; X08: things with a bundle's name that are no bundle.

use super::case::Kind::Template;
use super::case::{Case, Want};
use super::forge::{bundle_bytes, with_task};
use Want::{Fine, Refused};
use conpet_formats::Code::{Cap, Io, Unsupported, Value};
use conpet_formats::bundle::{Bundle, Draft, Survey, rollback, verify};
use conpet_formats::template;
use rustix::fs::{CWD, FileType, Mode, mknodat};

pub(crate) fn cases() -> Vec<Case> {
    let case = |id, what: &str, text: &str, want| Case::new(Template, id, what, text.as_bytes().to_vec(), want);
    let mut c = vec![
        case("X05", "16 KiB", &format!("{{input}}{}", "x".repeat(template::CAP - 7)), Fine),
        case("X05", "16 KiB + 1", &format!("{{input}}{}", "x".repeat(template::CAP - 6)), Refused(Cap)),
        case("X04", "doubled braces", "{{ {input} }}", Fine),
        case("X04", "a doubled brace and a place", "{{{input}", Fine),
    ];
    for (id, text) in [
        ("X02", "{{config}}"),
        ("X02", "{config}"),
        ("X02", "{% for i in range(9) %}{input}{% endfor %}"),
        ("X02", "{input.__class__}"),
        ("X02", "{input!r}"),
        ("X02", "{0}{input}"),
        ("X03", "{label}{input}"),
        ("X03", "{labels}"),
        ("X03", "{Input}"),
        ("X03", "{ input }"),
        ("X04", "{input"),
        ("X04", "input}"),
        ("X04", "{input}{"),
        ("X04", "{input}}"),
        ("X04", "{{input}"),
        ("X03", ""),
        ("X03", "no place"),
        ("X03", "{input}{input}"),
    ] {
        c.push(case(id, &format!("{text:?}"), text, Refused(Value)));
    }
    c
}

/// X06: a template has one place for the input and none for labels, so what it writes is its own
/// length and the input's at most.
#[test]
fn x06_templates_do_not_multiply() {
    let input = "x".repeat(1 << 20);
    let longest = format!("{{input}}{}", "{{".repeat((template::CAP - 7) / 2));
    let (out, cost) = super::heap::cost(|| template::render(&longest, &input).unwrap());
    assert_eq!(out.len(), input.len() + (template::CAP - 7) / 2);
    assert!(cost.peak <= input.len() + template::CAP && cost.calls <= 2, "{cost:?}");
}

#[test]
fn x08_only_a_regular_file_is_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("b.cpb"), bundle_bytes()).unwrap();
    std::os::unix::fs::symlink(path("b.cpb"), path("link")).unwrap();
    std::os::unix::fs::symlink(path("nowhere"), path("dangling")).unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let places = ["link", "dangling", "folder", "pipe", "socket"].map(path);
    for p in places.iter().chain(&["/dev/zero".into(), "/dev/null".into(), path("absent")]) {
        let codes = [
            Bundle::open(p).unwrap_err().code(),
            Bundle::open_stage(p, 1).unwrap_err().code(),
            verify(p, true).unwrap_err().code(),
            Survey::open(p).unwrap_err().code(),
            rollback(p, 1).unwrap_err().code(),
        ];
        assert_eq!(codes, [Io; 5], "{}", p.display());
    }
    // A second name is the same file: good to read, but who writes would write to both.
    std::fs::hard_link(path("b.cpb"), path("twin")).unwrap();
    let twin = Bundle::open(&path("twin")).unwrap();
    assert_eq!(rollback(&path("twin"), 1).unwrap_err().code(), Unsupported);
    assert_eq!(with_task(Draft::from_bundle(&twin), "three").append(&path("b.cpb")).unwrap_err().code(), Unsupported);
    assert_eq!(std::fs::read(path("b.cpb")).unwrap(), bundle_bytes(), "nothing was written");
    std::fs::remove_file(path("twin")).unwrap();
    rollback(&path("b.cpb"), 1).unwrap();
}
