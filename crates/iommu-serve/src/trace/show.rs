//! A trace for people.

use std::fmt::Write as _;

use iommu_types::HostPhys;
use vtd_model::{AccessWidth, RequestKind};
use vtd_spec::access::RegisterSpec;
use vtd_spec::descriptor::Descriptor;
use vtd_spec::register::{InvalidationQueueAddress, offset};

use super::record::{Answer, Effect, Operation, Record, Story};

/// Where the invalidation queue is, as far as the trace told.
#[derive(Default)]
struct Queue {
    first: u64,
    end: u64,
}

impl Queue {
    /// IQA_REG says base and size (VT-d §11.4.9.3).
    fn learn(&mut self, offset: u32, width: AccessWidth, value: u64) {
        if offset == offset::IQA && width == AccessWidth::Qword {
            let address = InvalidationQueueAddress::new_with_raw_value(value);
            self.first = address.base().raw();
            self.end = self.first.saturating_add(address.byte_len());
        }
    }

    fn holds(&self, at: HostPhys) -> bool {
        (self.first..self.end).contains(&at.raw())
    }
}

/// The trace with registers by name, descriptors decoded and blocked requests explained, one line a record.
pub fn show(story: &Story) -> String {
    let mut text = String::new();
    let mut queue = Queue::default();
    let mut records = story.records.iter().peekable();
    while let Some((line, record)) = records.next() {
        let said = match record {
            Record::Word(at, low) if queue.holds(*at) => match records.peek() {
                Some((_, Record::Word(next, high))) if next.raw() == at.raw().wrapping_add(8) => {
                    records.next();
                    descriptor([*low, *high])
                }
                _ => format!("    memory {at}: {low:#018x}"),
            },
            Record::Word(at, value) => format!("    memory {at}: {value:#018x}"),
            Record::Do(operation) => {
                if let Operation::Write { offset, width, value } = operation {
                    queue.learn(*offset, *width, *value);
                }
                done(operation)
            }
            Record::Did(effect) => format!("    -> {}", came(effect)),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line:>6}  {said}");
    }
    text
}

fn descriptor(words: [u64; 2]) -> String {
    match Descriptor::from_words(words) {
        Ok(descriptor) => format!("    descriptor {descriptor:?}"),
        Err(kind) => format!(
            "    descriptor of unknown type {kind:?}: {:#x} {:#x}",
            words[0], words[1]
        ),
    }
}

fn register(offset: u32) -> String {
    if let Some(spec) = RegisterSpec::at(offset) {
        return spec.name.to_owned();
    }
    match offset.checked_sub(4).and_then(RegisterSpec::at) {
        Some(spec) => format!("{} (high)", spec.name),
        None => format!("register {offset:#x}"),
    }
}

fn done(operation: &Operation) -> String {
    match operation {
        Operation::Read { offset, value, .. } => format!("read  {} = {value:#x}", register(*offset)),
        Operation::Write { offset, value, .. } => format!("write {} = {value:#x}", register(*offset)),
        Operation::Dma {
            source,
            access,
            address,
            len,
            kind,
            answer,
        } => {
            let kind = match kind {
                RequestKind::Untranslated => "dma  ",
                RequestKind::Translation => "asks ",
                RequestKind::Translated => "knows",
            };
            let came = match answer {
                Answer::Reaches(at) => format!("reaches {at}"),
                Answer::Blocked(reason) => format!("is blocked: {reason}"),
            };
            format!("{kind} {source} {access} of {len:#x} bytes at {address} {came}")
        }
        Operation::Reset => "reset".to_owned(),
    }
}

fn came(effect: &Effect) -> String {
    match effect {
        Effect::Set(at, value) => format!("memory {at} becomes {value:#018x}"),
        Effect::Set32(at, value) => format!("memory {at} becomes {value:#010x}"),
        Effect::Event(address, data) => format!("interrupt message {data:#x} to {address:#x}"),
        Effect::Broken(rule, text) => format!("rule broken: {rule} {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_names_and_descriptors_are_decoded() {
        let story = Story::parse(
            "portcullis-trace 1\nunit cap=0 ecap=0\nwrite 64 0x90 0x5000\nword 0x5000 0x11\nword 0x5008 0x0\n\
             write 64 0x88 0x10\nread 32 0x1c 0x0\n",
        )
        .unwrap();
        let text = show(&story);
        for words in [
            "write IQA = 0x5000",
            "ContextCacheInvalidation",
            "write IQT = 0x10",
            "read  GSTS = 0x0",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }
}
