//! Copies bytes between two connections.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Which end of a pair of connections ended first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// The one of this machine.
    Near,
    /// The one of the other machine.
    Far,
}

/// Bytes that are copied at a time.
const PIECE: usize = 256 << 10;

/// Copies both ways until one end is closed or breaks, closes both, and returns which it was.
///
/// # Errors
/// If the system gives no second handle of a connection.
pub fn relay(near: &TcpStream, far: &TcpStream) -> io::Result<First> {
    // What arrives is sent at once: each evaluation waits for it.
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
    let first = std::sync::OnceLock::new();
    std::thread::scope(|scope| {
        let back = std::thread::Builder::new().name("relay".into()).spawn_scoped(scope, || {
            let end = copy(&far_too, &near_too);
            let _ = first.set(if end == End::Source { First::Far } else { First::Near });
            close(&near_too, &far_too);
        })?;
        let end = copy(near, far);
        let _ = first.set(if end == End::Source { First::Near } else { First::Far });
        close(near, far);
        back.join().map_err(|_| io::Error::other("a relay failed"))
    })?;
    Ok(first.get().copied().unwrap_or(First::Far))
}

#[derive(PartialEq)]
enum End {
    Source,
    Target,
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> End {
    let mut piece = vec![0u8; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(n) if n > 0 => match piece.get(..n).map(|piece| to.write_all(piece)) {
                Some(Ok(())) => {}
                _ => return End::Target,
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return End::Source,
        }
    }
}

fn close(near: &TcpStream, far: &TcpStream) {
    // Either may be closed already.
    let _ = near.shutdown(Shutdown::Both);
    let _ = far.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_go_both_ways_and_the_end_that_closed_is_known() {
        for first in [First::Near, First::Far] {
            let ((mut client, near), (far, mut server)) = (pair(), pair());
            let relaying = std::thread::spawn(move || relay(&near, &far).unwrap());
            let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
            let reading = {
                let (sent, mut server) = (sent.clone(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let mut got = vec![0; sent.len()];
                    server.read_exact(&mut got).unwrap();
                    got == sent
                })
            };
            client.write_all(&sent).unwrap();
            assert!(reading.join().unwrap());
            server.write_all(b"answer").unwrap();
            let mut answer = [0; 6];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer");
            match first {
                First::Near => drop(client),
                First::Far => server.shutdown(Shutdown::Both).unwrap(),
            }
            assert_eq!(relaying.join().unwrap(), first);
        }
    }
}
