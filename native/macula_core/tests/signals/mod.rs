//! Distribution frames as the emulator encodes them without atom cache: every operation of OTP 25 to
//! 29, some that nobody knows, whole and in fragments.

/// A process, of the node that sends or of the one that receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pid {
    pub node: &'static str,
    pub id: u32,
    pub serial: u32,
    pub creation: u32,
}

/// How a receiver is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Pid,
    Name,
    Alias,
}

/// What the emulator is asked to send: `sender` is the process that does it, whether the operation
/// tells it or not.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub operation: Operation,
    pub sender: Pid,
    pub receiver: Pid,
}

/// The operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Link,
    Exit {
        second: bool,
        token: bool,
        payload: bool,
    },
    Send {
        to: Address,
        token: bool,
    },
    /// As OTP 28 and later send what has a priority, and whatever goes to an alias.
    Altact {
        to: Address,
        token: bool,
    },
    Monitor {
        named: bool,
    },
    Demonitor {
        named: bool,
    },
    MonitorExit {
        payload: bool,
    },
    SpawnRequest {
        token: bool,
    },
    /// The sender is the child.
    SpawnReply {
        token: bool,
    },
    Unlink {
        acknowledge: bool,
        id: u64,
    },
    /// No child: the emulator answers itself.
    SpawnError,
    GroupLeader,
    /// Of a registered process that was monitored by its name.
    NamedMonitorExit {
        payload: bool,
    },
    /// As before the nodes are connected.
    AnonymousSend {
        token: bool,
    },
    /// An operation of the future, with the sender where it may be by chance.
    Future(u8),
    /// Terms and headers that are valid, and that no emulator makes so.
    LargeTuple,
    AtomCache,
    PassThrough,
}

use Operation::*;

/// All operations, in every form that makes a difference.
pub fn operations() -> Vec<Operation> {
    let mut all = vec![Link, SpawnError, GroupLeader, Future(4), Future(38), Future(200)];
    all.extend([LargeTuple, AtomCache, PassThrough]);
    for id in [1, 255, 256, u64::from(u32::MAX), u64::MAX] {
        all.extend([Unlink { acknowledge: false, id }, Unlink { acknowledge: true, id }]);
    }
    for flag in [false, true] {
        all.extend([Monitor { named: flag }, Demonitor { named: flag }]);
        all.extend([MonitorExit { payload: flag }, NamedMonitorExit { payload: flag }]);
        all.extend([SpawnRequest { token: flag }, SpawnReply { token: flag }]);
        all.push(AnonymousSend { token: flag });
        for to in [Address::Pid, Address::Name, Address::Alias] {
            all.extend([Send { to, token: flag }, Altact { to, token: flag }]);
        }
        for (second, payload) in [(false, false), (false, true), (true, false), (true, true)] {
            all.push(Exit { second, token: flag, payload });
        }
    }
    all
}

impl Operation {
    /// Whether it tells its sender: otherwise it has to be a fence.
    pub fn tells_sender(self) -> bool {
        !matches!(
            self,
            GroupLeader
                | NamedMonitorExit { .. }
                | AnonymousSend { .. }
                | Future(_)
                | LargeTuple
                | AtomCache
                | PassThrough
        )
    }

    /// Whether what follows the control message may be large.
    fn has_payload(self) -> bool {
        match self {
            Exit { payload, .. } | MonitorExit { payload } | NamedMonitorExit { payload } => {
                payload
            }
            Send { .. } | Altact { .. } | SpawnRequest { .. } | AnonymousSend { .. } => true,
            Future(_) => true,
            _ => false,
        }
    }
}

/// The frames of a signal. Only what has a payload is cut, in `fragments`; then `sequence` is what
/// they have in common.
pub fn frames(request: &Request, sequence: u64, fragments: u64) -> Vec<Vec<u8>> {
    let control = control(request);
    if fragments < 2 || !request.operation.has_payload() {
        return vec![whole(request.operation, &control)];
    }
    let fragment = |kind, number: u64| {
        let mut frame = vec![131, kind];
        frame.extend(sequence.to_be_bytes());
        frame.extend(number.to_be_bytes());
        frame
    };
    let mut first = fragment(69, fragments);
    first.push(0);
    first.extend(control);
    let next = (1..fragments).rev().map(|number| fragment(70, number));
    let mut frames: Vec<Vec<u8>> = [first].into_iter().chain(next).collect();
    for frame in &mut frames {
        frame.extend(binary(b"some of the payload"));
    }
    frames
}

fn whole(operation: Operation, control: &[u8]) -> Vec<u8> {
    let mut frame = match operation {
        // An entry in use: segment and index 0.
        AtomCache => vec![131, 68, 1, 0, 0],
        PassThrough => vec![112, 131],
        _ => vec![131, 68, 0],
    };
    frame.extend(control);
    if operation.has_payload() {
        frame.extend(binary(b"payload"));
    }
    frame
}

fn control(request: &Request) -> Vec<u8> {
    let Request { operation, sender, receiver } = *request;
    let (from, to) = (pid(sender), pid(receiver));
    let reference = reference(receiver.node);
    let watched = |named| if named { atom("watched") } else { to.clone() };
    let token_if = |token: bool| if token { vec![trace_token(&from)] } else { vec![] };
    match operation {
        Link => tuple(1, [from, to]),
        Exit { second, token, payload } => {
            let number = match (second, token) {
                (false, false) => (3, 24),
                (false, true) => (13, 25),
                (true, false) => (8, 26),
                (true, true) => (18, 27),
            };
            let mut elements = vec![from.clone(), to];
            elements.extend(token_if(token));
            elements.extend((!payload).then(|| atom("reason")));
            tuple(if payload { number.1 } else { number.0 }, elements)
        }
        Send { to: address, token } => {
            let (number, target) = match address {
                Address::Pid => (22, vec![to]),
                Address::Name => (if token { 16 } else { 6 }, vec![atom(""), atom("name")]),
                Address::Alias => (33, vec![reference]),
            };
            let one_up = token && address != Address::Name;
            let elements = [vec![from.clone()], target, token_if(token)].concat();
            tuple(number + u8::from(one_up), elements)
        }
        Altact { to: address, token } => {
            let (flag, target) = match address {
                Address::Pid => (1, to),
                Address::Name => (8, atom("name")),
                Address::Alias => (4, reference),
            };
            let flags = integer(flag | if token { 2 } else { 0 });
            tuple(37, [vec![flags, from.clone(), target], token_if(token)].concat())
        }
        Monitor { named } => tuple(19, [from, watched(named), reference]),
        Demonitor { named } => tuple(20, [from, watched(named), reference]),
        MonitorExit { payload } => monitor_exit(payload, from, to, reference),
        NamedMonitorExit { payload } => monitor_exit(payload, atom("name"), to, reference),
        SpawnRequest { token } => {
            let call = [vec![104, 3], atom("m"), atom("f"), integer(0)].concat();
            let elements = vec![reference, from.clone(), from.clone(), call, vec![106]];
            tuple(29 + u8::from(token), [elements, token_if(token)].concat())
        }
        SpawnReply { token } => {
            let elements = vec![reference, to, integer(3), from.clone()];
            tuple(31 + u8::from(token), [elements, token_if(token)].concat())
        }
        SpawnError => tuple(31, [reference, to, integer(0), atom("system_limit")]),
        Unlink { acknowledge, id } => tuple(35 + u8::from(acknowledge), [integer(id), from, to]),
        GroupLeader => tuple(7, [pid(Pid { id: 71, ..sender }), to]),
        AnonymousSend { token } => {
            tuple(if token { 12 } else { 2 }, [vec![atom(""), to], token_if(token)].concat())
        }
        Future(number) => tuple(number, [from, to]),
        LargeTuple => [vec![105, 0, 0, 0, 3, 97, 1], from, to].concat(),
        AtomCache | PassThrough => tuple(1, [from, to]),
    }
}

fn monitor_exit(payload: bool, from: Vec<u8>, to: Vec<u8>, reference: Vec<u8>) -> Vec<u8> {
    let mut elements = vec![from, to, reference];
    elements.extend((!payload).then(|| atom("reason")));
    tuple(if payload { 28 } else { 21 }, elements)
}

fn tuple(operation: u8, elements: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let elements: Vec<Vec<u8>> = elements.into_iter().collect();
    let mut term = vec![104, elements.len() as u8 + 1, 97, operation];
    term.extend(elements.concat());
    term
}

fn atom(name: &str) -> Vec<u8> {
    let mut term = match u8::try_from(name.len()) {
        Ok(len) => vec![119, len],
        Err(_) => [vec![118], (name.len() as u16).to_be_bytes().to_vec()].concat(),
    };
    term.extend(name.as_bytes());
    term
}

fn pid(pid: Pid) -> Vec<u8> {
    let mut term = vec![88];
    term.extend(atom(pid.node));
    for number in [pid.id, pid.serial, pid.creation] {
        term.extend(number.to_be_bytes());
    }
    term
}

fn reference(node: &str) -> Vec<u8> {
    let mut term = vec![90, 0, 3];
    term.extend(atom(node));
    for number in [5u32, 6, 7, 8] {
        term.extend(number.to_be_bytes());
    }
    term
}

fn integer(value: u64) -> Vec<u8> {
    if let Ok(small) = u8::try_from(value) {
        return vec![97, small];
    }
    // Signed.
    if let Ok(integer) = i32::try_from(value) {
        return [vec![98], integer.to_be_bytes().to_vec()].concat();
    }
    let bytes = value.to_le_bytes();
    let len = 8 - value.leading_zeros() as usize / 8;
    [vec![110, len as u8, 0], bytes[..len].to_vec()].concat()
}

fn binary(bytes: &[u8]) -> Vec<u8> {
    [vec![109], (bytes.len() as u32).to_be_bytes().to_vec(), bytes.to_vec()].concat()
}

/// A sequential trace token: `{Flags, Label, Serial, From, Previous}`.
fn trace_token(from: &[u8]) -> Vec<u8> {
    let [flags, label, serial, previous] = [1, 17, 3, 2].map(integer);
    [vec![104, 5], flags, label, serial, from.to_vec(), previous].concat()
}
