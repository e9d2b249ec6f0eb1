//! Erlang's terms for addresses and reasons.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use macula_core::hello::Refusal;
use macula_net::{CertificateFault, Closed, DialError, FileError, Incident, Way};
use rustler::{Binary, Decoder, Encoder, Env, Error, NewBinary, NifResult, Term};

use crate::atoms;

/// An integer that fits: rustler's own decoders of small types cut off what does not.
pub(crate) struct Exact<T>(pub(crate) T);

impl<'a, T: TryFrom<u32> + 'a> Decoder<'a> for Exact<T> {
    fn decode(term: Term<'a>) -> NifResult<Exact<T>> {
        T::try_from(term.decode()?).map(Exact).map_err(|_| Error::BadArg)
    }
}

/// `inet:ip_address()`.
pub(crate) struct Ip(pub(crate) IpAddr);

impl<'a> Decoder<'a> for Ip {
    fn decode(term: Term<'a>) -> NifResult<Ip> {
        type Byte = Exact<u8>;
        if let Ok((a, b, c, d)) = term.decode::<(Byte, Byte, Byte, Byte)>() {
            return Ok(Ip(Ipv4Addr::new(a.0, b.0, c.0, d.0).into()));
        }
        let fields = rustler::types::tuple::get_tuple(term)?;
        let fields: Vec<u16> = fields
            .iter()
            .map(|field| field.decode::<Exact<u16>>().map(|field| field.0))
            .collect::<Result<_, _>>()?;
        let fields: [u16; 8] = fields.try_into().map_err(|_| Error::BadArg)?;
        Ok(Ip(Ipv6Addr::from(fields).into()))
    }
}

impl Encoder for Ip {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self.0 {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                (a, b, c, d).encode(env)
            }
            IpAddr::V6(v6) => {
                let fields: Vec<Term<'a>> = v6.segments().iter().map(|s| s.encode(env)).collect();
                rustler::types::tuple::make_tuple(env, &fields)
            }
        }
    }
}

/// `{inet:ip_address(), inet:port_number()}`.
pub(crate) struct Address(pub(crate) SocketAddr);

impl<'a> Decoder<'a> for Address {
    fn decode(term: Term<'a>) -> NifResult<Address> {
        let (ip, port): (Ip, Exact<u16>) = term.decode()?;
        Ok(Address(SocketAddr::new(ip.0, port.0)))
    }
}

impl Encoder for Address {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        (Ip(self.0.ip()), self.0.port()).encode(env)
    }
}

/// A way to a node: an address like [`Address`], `{Ip, Port, Interface}` where an IPv6 address
/// means something only on one link, or `mesh`.
pub(crate) struct Candidate(pub(crate) Way);

impl<'a> Decoder<'a> for Candidate {
    fn decode(term: Term<'a>) -> NifResult<Candidate> {
        if let Ok(atom) = term.decode::<rustler::Atom>() {
            return if atom == atoms::mesh() {
                Ok(Candidate(Way::Mesh))
            } else {
                Err(Error::BadArg)
            };
        }
        let Ok((ip, port, interface)) = term.decode::<(Ip, Exact<u16>, u32)>() else {
            return term.decode::<Address>().map(|address| Candidate(Way::Address(address.0)));
        };
        match ip.0 {
            IpAddr::V6(ip) => {
                let address = SocketAddrV6::new(ip, port.0, 0, interface);
                Ok(Candidate(Way::Address(address.into())))
            }
            IpAddr::V4(_) => Err(Error::BadArg),
        }
    }
}

impl Encoder for Candidate {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self.0 {
            Way::Mesh => atoms::mesh().encode(env),
            Way::Address(SocketAddr::V6(v6)) if v6.scope_id() != 0 => {
                (Ip((*v6.ip()).into()), v6.port(), v6.scope_id()).encode(env)
            }
            Way::Address(address) => Address(address).encode(env),
        }
    }
}

/// A UTF-8 binary that is copied in.
pub(crate) struct Text(pub(crate) String);

impl<'a> Decoder<'a> for Text {
    fn decode(term: Term<'a>) -> NifResult<Text> {
        let binary: Binary<'a> = term.decode()?;
        let text = std::str::from_utf8(&binary).map_err(|_| Error::BadArg)?;
        Ok(Text(text.to_owned()))
    }
}

/// Calls `each` with the elements of a proper list, in order. rustler's own iterator panics at an
/// improper tail.
pub(crate) fn for_each<'a>(
    list: Term<'a>,
    mut each: impl FnMut(Term<'a>) -> NifResult<()>,
) -> NifResult<()> {
    let mut rest = list;
    while !rest.is_empty_list() {
        let (head, tail) = rest.list_get_cell()?;
        each(head)?;
        rest = tail;
    }
    Ok(())
}

/// A path, as a UTF-8 binary.
pub(crate) struct File(pub(crate) PathBuf);

impl<'a> Decoder<'a> for File {
    fn decode(term: Term<'a>) -> NifResult<File> {
        Ok(File(PathBuf::from(term.decode::<Text>()?.0)))
    }
}

/// `undefined`, or what it stands for.
pub(crate) struct Given<T>(pub(crate) Option<T>);

impl<'a, T: Decoder<'a>> Decoder<'a> for Given<T> {
    fn decode(term: Term<'a>) -> NifResult<Given<T>> {
        match term.decode::<rustler::Atom>() {
            Ok(atom) if atom == atoms::undefined() => Ok(Given(None)),
            _ => term.decode().map(|value| Given(Some(value))),
        }
    }
}

/// A new binary with `bytes`.
pub(crate) fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    binary.as_mut_slice().copy_from_slice(bytes);
    Binary::from(binary).to_term(env)
}

/// `{error, Reason}`.
pub(crate) fn error<'a>(env: Env<'a>, reason: impl Encoder) -> Term<'a> {
    (atoms::error(), reason).encode(env)
}

/// Why a link is closed, as an atom or `{Atom, Text}`.
pub(crate) fn closed<'a>(env: Env<'a>, reason: &Closed) -> Term<'a> {
    match reason {
        Closed::Local => atoms::local().encode(env),
        Closed::Peer => atoms::peer_closed().encode(env),
        Closed::Replaced => atoms::replaced().encode(env),
        Closed::Unreachable => atoms::unreachable().encode(env),
        Closed::Lost(text) => (atoms::connection_lost(), binary(env, text.as_bytes())).encode(env),
    }
}

/// Why an address gave no link.
pub(crate) fn dial_error<'a>(env: Env<'a>, reason: &DialError) -> Term<'a> {
    let text = |tag: rustler::Atom, text: &str| (tag, binary(env, text.as_bytes())).encode(env);
    match reason {
        DialError::Timeout => atoms::timeout().encode(env),
        DialError::NoHello => atoms::no_hello().encode(env),
        DialError::Busy => atoms::busy().encode(env),
        DialError::PortClosed => atoms::port_closed().encode(env),
        DialError::Refused(refusal) => (atoms::refused(), refusal_atom(*refusal)).encode(env),
        DialError::Version(low, high) => (atoms::version_mismatch(), *low, *high).encode(env),
        DialError::NotMacula(why) => text(atoms::not_macula(), why),
        DialError::Certificate(fault) => (atoms::certificate(), fault_atom(*fault)).encode(env),
        DialError::OwnCertificate(fault) => {
            (atoms::own_certificate(), fault_atom(*fault)).encode(env)
        }
        DialError::NoMesh => atoms::no_mesh().encode(env),
        DialError::NotInMesh => atoms::not_in_mesh().encode(env),
        DialError::Tls(why) => text(atoms::tls(), why),
        DialError::Io(why) => text(atoms::io(), why),
    }
}

/// Why a stranger did not get in.
pub(crate) fn incident<'a>(env: Env<'a>, incident: Incident) -> Term<'a> {
    match incident {
        Incident::Refused(refusal) => refusal_atom(refusal).encode(env),
        Incident::Certificate(fault) => (atoms::certificate(), fault_atom(fault)).encode(env),
        Incident::OwnCertificate(fault) => {
            (atoms::own_certificate(), fault_atom(fault)).encode(env)
        }
    }
}

/// `{bad_file, Path, Why}`.
pub(crate) fn file_error<'a>(env: Env<'a>, error: &FileError) -> Term<'a> {
    let path = error.file.to_string_lossy();
    (atoms::bad_file(), binary(env, path.as_bytes()), binary(env, error.why.as_bytes())).encode(env)
}

pub(crate) fn fault_atom(fault: CertificateFault) -> rustler::Atom {
    match fault {
        CertificateFault::Unreadable => atoms::unreadable(),
        CertificateFault::Expired => atoms::expired(),
        CertificateFault::NotYetValid => atoms::not_yet_valid(),
        CertificateFault::UnknownIssuer => atoms::unknown_issuer(),
        CertificateFault::WrongName => atoms::wrong_name(),
        CertificateFault::Unfit => atoms::unfit(),
    }
}

fn refusal_atom(refusal: Refusal) -> rustler::Atom {
    match refusal {
        Refusal::WrongName => atoms::wrong_name(),
        Refusal::Version => atoms::version_mismatch(),
        Refusal::Proof => atoms::proof(),
        Refusal::NameTaken => atoms::name_taken(),
        Refusal::Malformed => atoms::malformed(),
        Refusal::Other(_) => atoms::later_version(),
    }
}
