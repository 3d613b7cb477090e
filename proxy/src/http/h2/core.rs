//! A connection of HTTP/2 (RFC 9113) without its socket: what frames that come mean, and what is to be written.
//!
//! Both sides of it are in one thread: the task that moves bytes, and the tasks of the requests. What a request sends is written into
//! `out` at once, as far as windows and room allow; so nothing waits anywhere but with whoever sends it.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustc_hash::FxHashMap;

use super::{
    CONNECTION_WINDOW, Error, HEADER_LIST, Reason, STREAM_WINDOW, STREAMS,
    frame::{
        self, FrameHeader, HEADER, INITIAL_WINDOW, Kind, MAX_PAYLOAD, MAX_STREAM, MAX_WINDOW, PREFACE, flag, setting,
    },
    guard::Guard,
    hpack::{Decoder, Encoder},
    read::{self, ListReader, Unread},
    stream::{INTERIMS, Stream, remember},
    write::{Block, List},
};
use crate::http::{Asked, Framing, Limits, Refused, RequestHead};

/// Bytes that wait to be written before streams wait with theirs: some records of TLS.
const OUT: usize = 64 * 1024;
/// What one stream sends before it is another's turn.
const TURN: usize = 16 * 1024;
/// Beyond so much that waits to be written nothing more is read: what is read makes answers.
const CLOGGED: usize = 4 * OUT;
/// What a connection needs whose requests come one after the other.
const USUAL: usize = 1024;
/// Longest compressed list of headers. One that is not compressed at all is within [`HEADER_LIST`].
const BLOCK: usize = 2 * HEADER_LIST as usize;
/// Streams that were reset here not long ago: what the peer had sent on them is passed over.
const RESET: usize = 256;
/// The ping whose answer says that the peer has heard of our leaving.
const LEAVING: [u8; 8] = *b"leaving!";
/// The ping that asks whether the peer is there.
const ALIVE: [u8; 8] = *b"alive?\0\0";
const TOO_MANY: &str = "it floods the connection with frames that move nothing";

/// The connection's state.
pub(super) struct Core {
    is_server: bool,
    limits: Limits,
    pub(super) streams: FxHashMap<u32, Box<Stream>>,
    /// Those that are not closed.
    open: u32,
    /// The next one that we open.
    next: u32,
    /// The last one that the peer has opened.
    last: u32,
    reset: VecDeque<u32>,
    arrived: VecDeque<Arrived>,
    decoder: Decoder,
    encoder: Encoder,
    /// A list of headers that goes on in the next frame.
    list: Option<(HeaderList, BytesMut)>,
    /// Payload of a frame of data that is still to come.
    data: Option<Payload>,
    /// Bytes of the preface that have come.
    preface: usize,
    /// The peer has sent its settings.
    settled: bool,
    /// Frames that have come, but for those that go on with a list.
    frames: u64,
    pub(super) out: BytesMut,
    window: i64,
    room: i64,
    taken: u32,
    peer: Peer,
    /// Streams that wait for room in `out`, or in the connection's window, in their turn.
    queue: VecDeque<u32>,
    /// Who waits to open a stream.
    openers: Vec<Waker>,
    driver: Option<Waker>,
    woken: bool,
    guard: Guard,
    leaving: Leaving,
    /// The peer takes no new streams.
    refuses: bool,
    pong: bool,
    ended: Option<Error>,
}

/// A request that has come.
pub(super) struct Arrived {
    pub(super) stream: u32,
    pub(super) head: Result<RequestHead, Refused>,
}

/// What the peer wants.
struct Peer {
    frame: usize,
    window: u32,
    streams: u32,
}

/// How far a server is with its leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// Said, with room for what is on its way.
    Announced,
    /// Said which stream was the last.
    Done,
}

/// A list of headers that has begun.
#[derive(Clone, Copy)]
struct HeaderList {
    stream: u32,
    ends: bool,
    depends_on_itself: bool,
}

#[derive(Clone, Copy)]
struct Payload {
    /// 0 where it is passed over.
    stream: u32,
    left: usize,
    ends: bool,
}

impl Core {
    /// A new connection; what we begin with is in `out`.
    pub(super) fn new(is_server: bool, limits: Limits) -> Self {
        let mut out = BytesMut::with_capacity(128);
        let common = [(setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW), (setting::MAX_HEADER_LIST_SIZE, HEADER_LIST)];
        if is_server {
            frame::put_settings(&mut out, &[(setting::MAX_CONCURRENT_STREAMS, STREAMS), common[0], common[1]]);
        } else {
            out.put_slice(PREFACE);
            frame::put_settings(&mut out, &[(setting::ENABLE_PUSH, 0), common[0], common[1]]);
        }
        frame::put_window_update(&mut out, 0, CONNECTION_WINDOW - INITIAL_WINDOW);
        Self {
            is_server,
            limits,
            streams: FxHashMap::default(),
            open: 0,
            next: 1,
            last: 0,
            reset: VecDeque::new(),
            arrived: VecDeque::new(),
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            list: None,
            data: None,
            preface: if is_server { 0 } else { PREFACE.len() },
            settled: false,
            frames: 0,
            out,
            window: i64::from(INITIAL_WINDOW),
            room: i64::from(CONNECTION_WINDOW),
            taken: 0,
            // As many as we take ourselves, until the peer has said.
            peer: Peer { frame: MAX_PAYLOAD, window: INITIAL_WINDOW, streams: STREAMS },
            queue: VecDeque::new(),
            openers: Vec::new(),
            driver: None,
            woken: false,
            guard: Guard::default(),
            leaving: Leaving::No,
            refuses: false,
            pong: false,
            ended: None,
        }
    }
}

/// For the task that moves bytes.
impl Core {
    /// This task moves bytes; it has been woken for what is there until now.
    pub(super) fn driven_by(&mut self, cx: &Context<'_>) {
        self.woken = false;
        remember(&mut self.driver, cx.waker());
    }

    pub(super) fn wake_driver(&mut self) {
        if !std::mem::replace(&mut self.woken, true)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }

    /// Takes in what has come: whole frames, and what is there of a frame of data. The rest stays in `bytes`.
    ///
    /// # Errors
    /// Why the connection is to be ended. The peer is told by what is in `out` then.
    pub(super) fn read(&mut self, bytes: &mut BytesMut) -> Result<(), Error> {
        let read = self.frames(bytes);
        if let Err(error) = &read {
            self.fail(error.clone());
            if let Error::GoAway { reason, .. } = error {
                frame::put_go_away(&mut self.out, self.last, *reason);
            }
        }
        read
    }

    /// So many bytes of `out` were written.
    pub(super) fn written(&mut self, bytes: usize) {
        self.guard.sent(bytes);
        if self.out.len() < OUT / 2 {
            self.next_turn();
        }
    }

    /// A client's connection that nobody uses any more ends, and says so.
    pub(super) fn end_unused(&mut self) {
        self.fail(CLOSED);
        frame::put_go_away(&mut self.out, self.last, Reason::NO_ERROR);
    }

    /// True where so much waits to be written that nothing is to be read.
    pub(super) fn is_clogged(&self) -> bool {
        self.out.len() > CLOGGED
    }

    /// True until the preface of a client has come.
    pub(super) fn wants_preface(&self) -> bool {
        self.preface < PREFACE.len()
    }

    /// The number of the head that has begun and not ended: a list of headers, or the beginning of a frame; `rest` is what [`Self::read`] has
    /// left. Nothing else can come on the connection before its end.
    pub(super) fn unfinished_head(&self, rest: &[u8]) -> Option<u64> {
        let is_frame = || !rest.is_empty() && FrameHeader::read(rest).is_none_or(|frame| frame.kind != Kind::Data);
        (self.list.is_some() || is_frame()).then_some(self.frames)
    }

    /// The next request. One that was taken back meanwhile costs nobody anything.
    pub(super) fn arrived(&mut self) -> Option<Arrived> {
        loop {
            let arrived = self.arrived.pop_front()?;
            match self.streams.get(&arrived.stream) {
                Some(stream) if stream.error.is_none() => return Some(arrived),
                _ => self.forget(arrived.stream),
            }
        }
    }

    /// True without any stream.
    pub(super) fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Gives back what many streams have needed.
    pub(super) fn shrink(&mut self) {
        const KEPT: usize = 16;
        if self.streams.is_empty() && self.streams.capacity() > KEPT {
            self.streams = FxHashMap::default();
            self.arrived = VecDeque::new();
            self.queue = VecDeque::new();
        }
    }

    /// A server takes no more streams than those that are on their way.
    pub(super) fn leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            frame::put_go_away(&mut self.out, MAX_STREAM, Reason::NO_ERROR);
            frame::put_ping(&mut self.out, LEAVING, false);
        }
    }

    /// True when a server that leaves has answered all.
    pub(super) fn has_left(&self) -> bool {
        self.leaving == Leaving::Done && self.streams.is_empty() && self.out.is_empty()
    }

    /// Asks whether the peer is there.
    pub(super) fn ping(&mut self) {
        self.pong = false;
        frame::put_ping(&mut self.out, ALIVE, false);
    }

    /// True once the peer has answered [`Self::ping`].
    pub(super) fn has_answered(&mut self) -> bool {
        std::mem::take(&mut self.pong)
    }

    /// The connection has ended: so have all streams that had not.
    pub(super) fn fail(&mut self, error: Error) {
        if self.ended.is_some() {
            return;
        }
        for stream in self.streams.values_mut() {
            if !stream.is_closed() {
                stream.error = Some(error.clone());
            }
            stream.wake_reader();
            stream.wake_writer();
        }
        self.open = 0;
        self.openers.drain(..).for_each(Waker::wake);
        self.ended = Some(error);
    }
}

/// Frames that come.
impl Core {
    fn frames(&mut self, bytes: &mut BytesMut) -> Result<(), Error> {
        if self.wants_preface() {
            let wanted = PREFACE.get(self.preface..).unwrap_or_default();
            let length = wanted.len().min(bytes.len());
            if bytes.get(..length) != wanted.get(..length) {
                return Err(Error::connection(Reason::PROTOCOL_ERROR, "no HTTP/2 preface"));
            }
            bytes.advance(length);
            self.preface = self.preface.saturating_add(length);
        }
        loop {
            if let Some(payload) = self.data {
                if bytes.is_empty() && payload.left > 0 {
                    return Ok(());
                }
                self.payload(payload, bytes)?;
                continue;
            }
            let Some(frame) = FrameHeader::read(bytes) else { return Ok(()) };
            if frame.length > MAX_PAYLOAD {
                return Err(Error::connection(Reason::FRAME_SIZE_ERROR, "a frame is larger than was agreed"));
            }
            let in_parts = frame.kind == Kind::Data && !frame.has(flag::PADDED);
            let end = HEADER.saturating_add(if in_parts { 0 } else { frame.length });
            let Some(payload) = bytes.get(HEADER..end) else { return Ok(()) };
            self.guard.frame(&frame).map_err(|_| Error::connection(Reason::ENHANCE_YOUR_CALM, TOO_MANY))?;
            if frame.kind != Kind::Continuation {
                self.frames = self.frames.wrapping_add(1);
            }
            match self.frame(&frame, payload) {
                Err(Error::Reset { reason, why, .. }) => self.refuse(frame.stream, reason, why)?,
                done => done?,
            }
            bytes.advance(end);
        }
    }

    fn frame(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), Error> {
        const PROTOCOL: Reason = Reason::PROTOCOL_ERROR;
        let wrong = |why| Err(Error::connection(PROTOCOL, why));
        if !self.settled && (frame.kind != Kind::Settings || frame.has(flag::ACK)) {
            return wrong("its first frame is not SETTINGS");
        }
        if let Some((list, _)) = &self.list
            && (frame.kind != Kind::Continuation || frame.stream != list.stream)
        {
            return wrong("another frame comes within a list of headers");
        }
        let of_connection = matches!(frame.kind, Kind::Settings | Kind::Ping | Kind::GoAway);
        let of_either = matches!(frame.kind, Kind::WindowUpdate | Kind::Unknown);
        if !of_either && of_connection != (frame.stream == 0) {
            return wrong("a frame names no stream, or one where none is meant");
        }
        match frame.kind {
            Kind::Data => self.begin_data(frame, payload),
            Kind::Headers => self.begin_list(frame, payload),
            Kind::Continuation => self.go_on(frame, payload),
            Kind::Priority => priority(frame, payload),
            Kind::Reset => self.was_reset(frame.stream, four(payload)?),
            Kind::Settings => self.settings(frame, payload),
            Kind::PushPromise => wrong("it pushes, which was not allowed"),
            Kind::Ping => self.pinged(frame, payload),
            Kind::GoAway => self.goes_away(payload),
            Kind::WindowUpdate => self.window_update(frame.stream, four(payload)? & MAX_STREAM),
            Kind::Unknown => Ok(()),
        }
    }

    /// True of a stream that nobody has opened yet.
    fn is_unopened(&self, stream: u32) -> bool {
        let by_peer = (stream % 2 == 1) == self.is_server;
        if by_peer { stream > self.last } else { self.is_server || stream >= self.next }
    }

    fn begin_data(&mut self, frame: &FrameHeader, padded: &[u8]) -> Result<(), Error> {
        let length = i64::try_from(frame.length).unwrap_or(i64::MAX);
        if length > self.room {
            return Err(Error::connection(Reason::FLOW_CONTROL_ERROR, "it sends more than the connection's window"));
        }
        self.room -= length;
        let is_padded = frame.has(flag::PADDED);
        let data = if is_padded { unpad(padded)? } else { padded };
        let expected = self.expect_data(frame, if is_padded { data.len() } else { frame.length });
        let stream = if matches!(expected, Ok(true)) { frame.stream } else { 0 };
        let ends = frame.has(flag::END_STREAM);
        if is_padded {
            if data.is_empty() && !ends {
                self.guard.charge().map_err(|_| Error::connection(Reason::ENHANCE_YOUR_CALM, TOO_MANY))?;
            }
            let mut data = BytesMut::from(data);
            self.took(stream, frame.length.saturating_sub(data.len()));
            self.payload(Payload { stream, left: data.len(), ends }, &mut data)?;
        } else {
            self.data = Some(Payload { stream, left: frame.length, ends });
        }
        expected.map(drop)
    }

    /// Whether data is for somebody; false where it is passed over.
    fn expect_data(&mut self, frame: &FrameHeader, length: usize) -> Result<bool, Error> {
        if self.is_unopened(frame.stream) {
            return Err(Error::connection(Reason::PROTOCOL_ERROR, "data comes on a stream that nobody has opened"));
        }
        let Some(stream) = self.streams.get_mut(&frame.stream) else {
            let closed = Error::stream(Reason::STREAM_CLOSED, "data comes on a stream that has ended");
            return if self.reset.contains(&frame.stream) { Ok(false) } else { Err(closed) };
        };
        match &stream.error {
            Some(error) if error.is_remote() => return Err(BEHIND_RESET),
            Some(_) => return Ok(false), // on its way when we reset the stream
            None => {}
        }
        if stream.received {
            return Err(Error::stream(Reason::STREAM_CLOSED, "data comes behind the end of a stream"));
        }
        if !self.is_server && !stream.answered {
            return Err(Error::stream(Reason::PROTOCOL_ERROR, "data comes before the head of an answer"));
        }
        stream.room = stream.room.saturating_sub(i64::try_from(frame.length).unwrap_or(i64::MAX));
        if stream.room < 0 {
            return Err(Error::stream(Reason::FLOW_CONTROL_ERROR, "it sends more than the stream's window"));
        }
        if let Some(left) = &mut stream.length {
            let after = left.checked_sub(u64::try_from(length).unwrap_or(u64::MAX));
            *left = after.ok_or(Error::stream(Reason::PROTOCOL_ERROR, "more data comes than content-length says"))?;
        }
        Ok(true)
    }

    /// Takes what has come of a frame of data.
    fn payload(&mut self, payload: Payload, bytes: &mut BytesMut) -> Result<(), Error> {
        let length = payload.left.min(bytes.len());
        let left = payload.left.saturating_sub(length);
        self.data = (left > 0).then_some(Payload { left, ..payload });
        match self.streams.get_mut(&payload.stream).filter(|stream| stream.error.is_none()) {
            Some(stream) => {
                stream.chunks.push_from(bytes, length);
                stream.waiting = stream.waiting.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
                if left == 0 && payload.ends {
                    return self.received(payload.stream);
                }
                stream.wake_reader();
            }
            None => {
                bytes.advance(length);
                self.took(0, length);
            }
        }
        Ok(())
    }

    /// The peer has sent all of a stream.
    fn received(&mut self, id: u32) -> Result<(), Error> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.length.is_some_and(|left| left > 0) {
            let why = "less data comes than content-length says";
            return self.refuse(id, Reason::PROTOCOL_ERROR, why);
        }
        stream.received = true;
        stream.wake_reader();
        self.settle(id);
        Ok(())
    }

    fn begin_list(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), Error> {
        let mut payload = if frame.has(flag::PADDED) { unpad(payload)? } else { payload };
        let mut depends_on_itself = false;
        if frame.has(flag::PRIORITY) {
            let (priority, rest) = payload.split_at_checked(5).ok_or(FRAME_SIZE)?;
            depends_on_itself = dependency(priority) == Some(frame.stream);
            payload = rest;
        }
        let list = HeaderList { stream: frame.stream, ends: frame.has(flag::END_STREAM), depends_on_itself };
        if frame.has(flag::END_HEADERS) {
            return self.take_list(list, payload);
        }
        self.list = Some((list, BytesMut::from(payload)));
        Ok(())
    }

    fn go_on(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), Error> {
        let Some((list, mut block)) = self.list.take() else {
            return Err(Error::connection(Reason::PROTOCOL_ERROR, "CONTINUATION comes without a list of headers"));
        };
        if block.len().saturating_add(payload.len()) > BLOCK {
            return Err(Error::connection(Reason::ENHANCE_YOUR_CALM, "a list of headers is far too long"));
        }
        block.put_slice(payload);
        if frame.has(flag::END_HEADERS) {
            return self.take_list(list, &block);
        }
        self.list = Some((list, block));
        Ok(())
    }

    /// A whole list of headers has come. It is always decoded: both sides' tables must stay the same.
    fn take_list(&mut self, list: HeaderList, block: &[u8]) -> Result<(), Error> {
        let stream = self.streams.get(&list.stream);
        let kind = match stream {
            Some(stream) if self.is_server || stream.answered => read::Kind::Trailers,
            _ if self.is_server => read::Kind::Request,
            _ => read::Kind::Response,
        };
        let is_known = stream.is_some();
        let mut reader = ListReader::new(kind);
        self.decoder.decode(block, |name, value| reader.field(name, value)).map_err(|_| {
            if reader.is_bomb() {
                Error::connection(Reason::ENHANCE_YOUR_CALM, "a list of headers is far too long")
            } else {
                Error::connection(Reason::COMPRESSION_ERROR, "a list of headers can not be decompressed")
            }
        })?;
        match kind {
            _ if is_known => self.take_later(list, reader),
            read::Kind::Request if self.is_unopened(list.stream) => self.take_request(list, reader),
            _ if self.is_unopened(list.stream) => {
                Err(Error::connection(Reason::PROTOCOL_ERROR, "headers come on a stream that nobody has opened"))
            }
            _ if self.reset.contains(&list.stream) || !self.is_server => Ok(()),
            _ => Err(Error::connection(Reason::STREAM_CLOSED, "headers come on a stream that has ended")),
        }
    }

    fn take_request(&mut self, list: HeaderList, reader: ListReader) -> Result<(), Error> {
        let id = list.stream;
        if id.is_multiple_of(2) {
            return Err(Error::connection(Reason::PROTOCOL_ERROR, "a client opens a stream of a server's number"));
        }
        self.last = if self.leaving == Leaving::Done { self.last } else { id };
        if self.leaving == Leaving::Done {
            return Ok(()); // was said: it is sent elsewhere
        }
        if list.depends_on_itself {
            return Err(DEPENDS_ON_ITSELF);
        }
        if self.open >= STREAMS {
            return Err(Error::stream(Reason::REFUSED_STREAM, "more streams than were agreed"));
        }
        let head = match reader.request(list.ends, &self.limits) {
            Ok(head) => Ok(head),
            Err(Unread::Refused(refused)) => Err(refused),
            Err(Unread::Malformed(why)) => return Err(Error::stream(Reason::PROTOCOL_ERROR, why)),
        };
        let mut stream = Stream::new(STREAM_WINDOW, i64::from(self.peer.window), Asked::Other);
        stream.length = head.as_ref().ok().and_then(|head| match head.framing() {
            Framing::Length(length) => Some(length),
            _ => None,
        });
        if list.ends && stream.length.is_some_and(|length| length > 0) {
            return Err(Error::stream(Reason::PROTOCOL_ERROR, "less data comes than content-length says"));
        }
        stream.received = list.ends;
        self.streams.insert(id, Box::new(stream));
        self.open = self.open.saturating_add(1);
        self.arrived.push_back(Arrived { stream: id, head });
        Ok(())
    }

    /// Headers behind others: an answer's, or trailers.
    fn take_later(&mut self, list: HeaderList, reader: ListReader) -> Result<(), Error> {
        let id = list.stream;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match &stream.error {
            Some(error) if error.is_remote() => return Err(BEHIND_RESET),
            Some(_) => return Ok(()),
            None => {}
        }
        if stream.received {
            let why = "headers come behind the end of a stream";
            return Err(if stream.sent {
                Error::connection(Reason::STREAM_CLOSED, why)
            } else {
                Error::stream(Reason::STREAM_CLOSED, why)
            });
        }
        if list.depends_on_itself {
            return Err(DEPENDS_ON_ITSELF);
        }
        let malformed = |why| Error::stream(Reason::PROTOCOL_ERROR, why);
        if self.is_server || stream.answered {
            if !list.ends {
                return Err(malformed("headers come behind headers, and do not end the stream"));
            }
            stream.trailers = Some(reader.trailers().map_err(malformed)?);
            return self.received(id);
        }
        let head = reader.response(stream.asked, list.ends).map_err(malformed)?;
        if head.is_interim() || head.status() == 101 {
            if list.ends || head.status() == 101 {
                return Err(malformed("an interim answer that ends the stream, or changes the protocol"));
            }
            if stream.interims.len() >= INTERIMS {
                return Err(Error::stream(Reason::ENHANCE_YOUR_CALM, "interim answers without end"));
            }
            stream.interims.push_back(head);
            stream.wake_reader();
            return Ok(());
        }
        stream.answered = true;
        stream.length = match head.framing() {
            Framing::Length(length) => Some(length),
            _ => None,
        };
        stream.head = Some(head);
        stream.wake_reader();
        if list.ends { self.received(id) } else { Ok(()) }
    }

    fn was_reset(&mut self, id: u32, reason: u32) -> Result<(), Error> {
        if self.is_unopened(id) {
            return Err(Error::connection(Reason::PROTOCOL_ERROR, "it resets a stream that nobody has opened"));
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.error.is_none() && !stream.is_closed() {
                stream.error = Some(Error::Reset { reason: Reason(reason), remote: true, why: "" });
                stream.wake_reader();
                stream.wake_writer();
            }
            self.settle(id);
        }
        Ok(())
    }

    fn settings(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), Error> {
        if frame.has(flag::ACK) {
            return if payload.is_empty() { Ok(()) } else { Err(FRAME_SIZE) };
        }
        let (settings, []) = payload.as_chunks::<6>() else { return Err(FRAME_SIZE) };
        for [name_high, name_low, a, b, c, d] in settings {
            let value = u32::from_be_bytes([*a, *b, *c, *d]);
            let wrong = |reason| Err(Error::connection(reason, "a setting has a value that it can not have"));
            match u16::from_be_bytes([*name_high, *name_low]) {
                setting::HEADER_TABLE_SIZE => self.encoder.resize(usize::try_from(value).unwrap_or(usize::MAX)),
                setting::ENABLE_PUSH if value > u32::from(self.is_server) => return wrong(Reason::PROTOCOL_ERROR),
                setting::MAX_CONCURRENT_STREAMS => self.peer.streams = value,
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => {
                    return wrong(Reason::FLOW_CONTROL_ERROR);
                }
                setting::INITIAL_WINDOW_SIZE => {
                    let more = i64::from(value) - i64::from(self.peer.window);
                    self.peer.window = value;
                    for stream in self.streams.values_mut() {
                        if !stream.widen(more) {
                            return wrong(Reason::FLOW_CONTROL_ERROR);
                        }
                        stream.wake_writer();
                    }
                }
                setting::MAX_FRAME_SIZE => match usize::try_from(value) {
                    Ok(size @ MAX_PAYLOAD..=0xff_ffff) => self.peer.frame = size,
                    _ => return wrong(Reason::PROTOCOL_ERROR),
                },
                _ => {}
            }
        }
        self.settled = true;
        self.openers.drain(..).for_each(Waker::wake);
        frame::put_header(&mut self.out, 0, Kind::Settings, flag::ACK, 0);
        Ok(())
    }

    fn pinged(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), Error> {
        let payload: [u8; 8] = payload.try_into().map_err(|_| FRAME_SIZE)?;
        if !frame.has(flag::ACK) {
            frame::put_ping(&mut self.out, payload, true);
        } else if payload == LEAVING && self.leaving == Leaving::Announced {
            self.leaving = Leaving::Done;
            frame::put_go_away(&mut self.out, self.last, Reason::NO_ERROR);
        } else if payload == ALIVE {
            self.pong = true;
        }
        Ok(())
    }

    fn goes_away(&mut self, payload: &[u8]) -> Result<(), Error> {
        let (last, reason) = payload.split_first_chunk::<4>().ok_or(FRAME_SIZE)?;
        let reason = Reason(u32::from_be_bytes(*reason.first_chunk::<4>().ok_or(FRAME_SIZE)?));
        let last = u32::from_be_bytes(*last) & MAX_STREAM;
        if self.is_server {
            return Ok(()); // a client has nothing to be kept from: we push nothing
        }
        self.refuses = true;
        self.openers.drain(..).for_each(Waker::wake);
        let behind: Vec<u32> = self.streams.keys().copied().filter(|id| *id > last).collect();
        for id in behind {
            if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) {
                stream.error = Some(Error::GoAway { reason, remote: true, why: "" });
                stream.wake_reader();
                stream.wake_writer();
                self.settle(id);
            }
        }
        Ok(())
    }

    fn window_update(&mut self, id: u32, more: u32) -> Result<(), Error> {
        let more = i64::from(more);
        let (none, too_wide) = ("an update of a window by nothing", "a window is wider than any may be");
        if id == 0 {
            self.window += more;
            if more == 0 {
                return Err(Error::connection(Reason::PROTOCOL_ERROR, none));
            }
            if self.window > MAX_WINDOW {
                return Err(Error::connection(Reason::FLOW_CONTROL_ERROR, too_wide));
            }
            self.next_turn();
            return Ok(());
        }
        if self.is_unopened(id) {
            let why = "it updates the window of a stream that nobody has opened";
            return Err(Error::connection(Reason::PROTOCOL_ERROR, why));
        }
        if more == 0 {
            return Err(Error::stream(Reason::PROTOCOL_ERROR, none));
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            if !stream.widen(more) {
                return Err(Error::stream(Reason::FLOW_CONTROL_ERROR, too_wide));
            }
            stream.wake_writer();
        }
        Ok(())
    }

    /// Ends a stream for what the peer has sent on it.
    fn refuse(&mut self, id: u32, reason: Reason, why: &'static str) -> Result<(), Error> {
        if self.streams.get(&id).is_some_and(|stream| stream.is_closed()) {
            frame::put_reset(&mut self.out, id, reason);
        } else {
            self.end(id, Error::stream(reason, why), reason);
        }
        self.guard.charge().map_err(|_| Error::connection(Reason::ENHANCE_YOUR_CALM, TOO_MANY))
    }

    /// Resets a stream.
    fn end(&mut self, id: u32, error: Error, reason: Reason) {
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.is_closed() {
                return;
            }
            stream.error = Some(error);
            stream.wake_reader();
            stream.wake_writer();
        }
        frame::put_reset(&mut self.out, id, reason);
        self.wake_driver();
        if self.reset.len() >= RESET {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
        self.settle(id);
    }

    /// A stream may have closed: it counts no more, and goes when nobody holds it.
    fn settle(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.is_closed() {
            return;
        }
        if !std::mem::replace(&mut stream.is_counted_out, true) {
            self.open = self.open.saturating_sub(1);
            self.openers.drain(..).for_each(Waker::wake);
        }
        if std::mem::take(&mut stream.queued) {
            self.queue.retain(|queued| *queued != id);
            self.next_turn();
        }
    }

    /// A stream is over for everybody: what nobody has taken of it is passed over.
    fn forget(&mut self, id: u32) {
        let waiting = self.streams.remove(&id).map_or(0, |stream| stream.waiting);
        if self.ended.is_none() {
            self.took(0, usize::try_from(waiting).unwrap_or(usize::MAX));
        }
    }

    /// So much was taken, or passed over (stream 0): the peer may send more.
    fn took(&mut self, id: u32, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(bytes);
        if self.taken >= CONNECTION_WINDOW / 2 {
            self.room += i64::from(self.taken);
            frame::put_window_update(&mut self.out, 0, std::mem::take(&mut self.taken));
            self.wake_driver();
        }
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.received && stream.error.is_none()) {
            stream.taken = stream.taken.saturating_add(bytes);
            if stream.taken >= STREAM_WINDOW / 2 {
                stream.room += i64::from(stream.taken);
                frame::put_window_update(&mut self.out, id, std::mem::take(&mut stream.taken));
                self.wake_driver();
            }
        }
    }

    /// There may be room: the first of those who wait for it looks again.
    fn next_turn(&mut self) {
        if self.window <= 0 || self.out.len() >= OUT {
            return;
        }
        while let Some(id) = self.queue.front().copied() {
            match self.streams.get_mut(&id) {
                Some(stream) => return stream.wake_writer(),
                None => drop(self.queue.pop_front()),
            }
        }
    }
}

/// For who holds a stream.
impl Core {
    /// The next data of a stream; none at its end.
    pub(super) fn poll_data(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Ok(None)) };
        if let Some(chunk) = stream.chunks.take() {
            stream.waiting = stream.waiting.saturating_sub(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
            self.took(id, chunk.len());
            return Poll::Ready(Ok(Some(chunk)));
        }
        if stream.received {
            return Poll::Ready(Ok(None));
        }
        match &stream.error {
            Some(error) => Poll::Ready(Err(error.clone())),
            None => {
                remember(&mut stream.reader, cx.waker());
                Poll::Pending
            }
        }
    }

    /// The head of the answer.
    pub(super) fn poll_head(&mut self, id: u32, cx: &Context<'_>) -> Poll<Result<crate::http::ResponseHead, Error>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Pending };
        match (stream.head.take(), &stream.error) {
            (Some(head), _) => Poll::Ready(Ok(head)),
            (None, Some(error)) => Poll::Ready(Err(error.clone())),
            (None, None) => {
                remember(&mut stream.reader, cx.waker());
                Poll::Pending
            }
        }
    }

    /// Sends a part of `data`, what there is room for; where `ends`, its last part ends the stream.
    pub(super) fn poll_send(
        &mut self,
        id: u32,
        cx: &Context<'_>,
        data: &mut Bytes,
        ends: bool,
    ) -> Poll<Result<(), Error>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(CLOSED)) };
        if let Some(error) = &stream.error {
            return Poll::Ready(Err(error.clone()));
        }
        if stream.sent {
            return Poll::Ready(Err(CLOSED));
        }
        if data.is_empty() {
            if !ends {
                return Poll::Ready(Ok(()));
            }
        } else {
            let is_first = self.queue.front().is_none_or(|first| *first == id);
            let shared = self.window > 0 && self.out.len() < OUT;
            if stream.window <= 0 || !shared || !is_first {
                remember(&mut stream.writer, cx.waker());
                if stream.window > 0 && !std::mem::replace(&mut stream.queued, true) {
                    self.queue.push_back(id);
                } else if stream.window <= 0 && std::mem::take(&mut stream.queued) {
                    // Its own window is what it waits for: it keeps nobody.
                    self.queue.retain(|queued| *queued != id);
                    self.next_turn();
                }
                return Poll::Pending;
            }
        }
        let most = usize::try_from(stream.window.min(self.window)).unwrap_or(0).min(TURN).min(self.peer.frame);
        let piece = data.split_to(most.min(data.len()));
        let length = i64::try_from(piece.len()).unwrap_or(i64::MAX);
        stream.window -= length;
        self.window -= length;
        let ends = ends && data.is_empty();
        stream.sent = ends;
        frame::put_header(&mut self.out, piece.len(), Kind::Data, if ends { flag::END_STREAM } else { 0 }, id);
        self.out.put_slice(&piece);
        if std::mem::take(&mut stream.queued) {
            self.queue.pop_front();
            self.next_turn();
        }
        self.wake_driver();
        if ends {
            self.settle(id);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends a list of headers on a stream.
    pub(super) fn send_list(&mut self, id: u32, list: &impl List, ends: bool) -> Result<(), Error> {
        let stream = self.streams.get_mut(&id).ok_or(CLOSED)?;
        if let Some(error) = &stream.error {
            return Err(error.clone());
        }
        if stream.sent {
            return Err(CLOSED);
        }
        stream.sent = ends;
        self.put_list(id, list, ends);
        if ends {
            self.settle(id);
        }
        Ok(())
    }

    fn put_list(&mut self, id: u32, list: &impl List, ends: bool) {
        if self.out.capacity() == 0 {
            self.out.reserve(USUAL);
        }
        let begin = self.out.len();
        let flags = if ends { flag::END_STREAM } else { 0 };
        frame::put_header(&mut self.out, 0, Kind::Headers, flags | flag::END_HEADERS, id);
        let from = self.out.len();
        Block { encoder: &mut self.encoder, out: &mut self.out }.list(list);
        let length = self.out.len().saturating_sub(from);
        let first = length.min(self.peer.frame);
        let rest = (first < length).then(|| self.out.split_off(from.saturating_add(first)));
        let last = if rest.is_some() { 0 } else { flag::END_HEADERS };
        if let Some(place) = self.out.get_mut(begin..from) {
            place.copy_from_slice(&frame::header(first, Kind::Headers, flags | last, id));
        }
        if let Some(rest) = rest {
            let mut parts = rest.chunks(self.peer.frame).peekable();
            while let Some(part) = parts.next() {
                let last = if parts.peek().is_some() { 0 } else { flag::END_HEADERS };
                frame::put_header(&mut self.out, part.len(), Kind::Continuation, last, id);
                self.out.put_slice(part);
            }
        }
        self.wake_driver();
    }

    /// Resets a stream, where it has not ended.
    pub(super) fn reset(&mut self, id: u32, reason: Reason) {
        self.end(id, Error::stream(reason, ""), reason);
    }

    /// Ready when a stream was reset, or its connection is gone.
    pub(super) fn poll_reset(&mut self, id: u32, cx: &Context<'_>) -> Poll<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(()) };
        if stream.error.is_some() {
            return Poll::Ready(());
        }
        remember(&mut stream.writer, cx.waker());
        Poll::Pending
    }

    /// Somebody holds a stream no more. When nobody does, it ends, and what nobody has taken is passed over.
    pub(super) fn release(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.handles = stream.handles.saturating_sub(1);
        if stream.handles > 0 {
            return;
        }
        let answered = self.is_server && stream.sent;
        if self.ended.is_none() {
            // Who has its answer needs not send the rest (RFC 9113, 8.1).
            self.end(id, CLOSED, if answered { Reason::NO_ERROR } else { Reason::CANCEL });
        }
        self.forget(id);
        if self.streams.is_empty() {
            self.wake_driver(); // which may wait for that
        }
    }
}

/// For a client.
impl Core {
    /// False where no more streams can be opened.
    pub(super) fn is_open(&self) -> bool {
        self.ended.is_none() && !self.refuses && self.next < MAX_STREAM
    }

    /// Streams at the same time that the peer takes.
    pub(super) fn takes(&self) -> u32 {
        self.peer.streams.min(STREAMS)
    }

    /// Ready when a stream can be opened, or never will be.
    pub(super) fn poll_room(&mut self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(error) = &self.ended {
            return Poll::Ready(Err(error.clone()));
        }
        if !self.is_open() {
            return Poll::Ready(Err(Error::GoAway { reason: Reason::NO_ERROR, remote: true, why: "" }));
        }
        if self.open < self.peer.streams {
            return Poll::Ready(Ok(()));
        }
        if !self.openers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.openers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Opens a stream.
    pub(super) fn open(&mut self, list: &impl List, asked: Asked, ends: bool) -> Result<u32, Error> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        if !self.is_open() {
            return Err(Error::GoAway { reason: Reason::NO_ERROR, remote: true, why: "" });
        }
        let id = self.next;
        self.next = self.next.saturating_add(2);
        let mut stream = Stream::new(STREAM_WINDOW, i64::from(self.peer.window), asked);
        stream.sent = ends;
        self.streams.insert(id, Box::new(stream));
        self.open = self.open.saturating_add(1);
        self.put_list(id, list, ends);
        Ok(id)
    }
}

const FRAME_SIZE: Error = Error::GoAway {
    reason: Reason::FRAME_SIZE_ERROR,
    remote: false,
    why: "a frame has a length that its kind can not have",
};
const DEPENDS_ON_ITSELF: Error =
    Error::Reset { reason: Reason::PROTOCOL_ERROR, remote: false, why: "a stream depends on itself" };
const BEHIND_RESET: Error =
    Error::Reset { reason: Reason::STREAM_CLOSED, remote: false, why: "a frame comes behind the reset of its stream" };
/// Of a stream that is used beyond its end.
const CLOSED: Error = Error::Reset { reason: Reason::STREAM_CLOSED, remote: false, why: "the stream has ended" };

/// What is padded (RFC 9113, 6.1).
fn unpad(payload: &[u8]) -> Result<&[u8], Error> {
    let (padding, rest) = payload.split_first().ok_or(FRAME_SIZE)?;
    let length = rest.len().checked_sub(usize::from(*padding));
    let too_long = Error::connection(Reason::PROTOCOL_ERROR, "a frame has more padding than payload");
    length.and_then(|length| rest.get(..length)).ok_or(too_long)
}

/// Priorities are followed by nobody any more (RFC 9113, 5.3.2).
fn priority(frame: &FrameHeader, payload: &[u8]) -> Result<(), Error> {
    if payload.len() != 5 {
        return Err(Error::stream(Reason::FRAME_SIZE_ERROR, "PRIORITY has a wrong length"));
    }
    if dependency(payload) == Some(frame.stream) { Err(DEPENDS_ON_ITSELF) } else { Ok(()) }
}

/// The stream that a priority names.
fn dependency(priority: &[u8]) -> Option<u32> {
    priority.first_chunk::<4>().map(|stream| u32::from_be_bytes(*stream) & MAX_STREAM)
}

/// A payload of four bytes.
fn four(payload: &[u8]) -> Result<u32, Error> {
    payload.try_into().map(u32::from_be_bytes).map_err(|_| FRAME_SIZE)
}
