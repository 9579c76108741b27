//! What earlier versions of the control plane sent (R42), recorded, one folder of `recorded/` a version: it is taken
//! whole, and what is made of it is the same when it is sent again by this one. A recording is never written anew; a
//! version that changes what is sent adds one.

use std::fmt::Debug;
use std::path::PathBuf;

use envoy_types::pb::google::protobuf::Any;

use crate::codec::{self, AnyListener, DecodeError, Decoded};

/// Folders, and how many resources each has.
const RECORDINGS: [(&str, usize); 1] = [("first", 20)];
/// What is refused since, and by which field: more probes than any kernel sends (127).
const REFUSED: [(&str, &str); 1] = [("cluster-3", "keepalive_probes")];

fn check<T: Debug + PartialEq>(
    name: &str,
    resource: &Any,
    decode: impl Fn(&Any) -> Result<Decoded<T>, DecodeError>,
    encode: impl Fn(&T) -> Any,
) {
    let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
    let taken = match (decode(resource), refused) {
        (Ok(taken), None) => taken.value,
        (Err(error), Some((_, field))) => return assert!(error.to_string().contains(field), "{name}: {error}"),
        (Ok(_), Some(_)) => panic!("{name} is not refused"),
        (Err(error), None) => panic!("{name}: {error}"),
    };
    let again = decode(&encode(&taken)).unwrap_or_else(|error| panic!("{name}, sent again: {error}")).value;
    assert_eq!(taken, again, "{name}");
}

#[test]
fn what_an_older_control_plane_sent_is_taken_and_means_the_same_when_it_is_sent_again_r42() {
    for (recording, wanted) in RECORDINGS {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recorded").join(recording);
        let mut seen = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap();
            let (name, value) = (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap());
            let any = |type_url: &str| Any { type_url: type_url.to_owned(), value: value.clone() };
            match name.split('-').next().unwrap() {
                "cluster" => check(&name, &any(codec::CLUSTER), |a| codec::decode_cluster(a), codec::encode_cluster),
                "endpoints" => {
                    check(&name, &any(codec::ENDPOINTS), |a| codec::decode_endpoints(a), codec::encode_endpoints)
                }
                "routes" => check(&name, &any(codec::ROUTES), |a| codec::decode_routes(a), codec::encode_routes),
                "client" | "server" => check(
                    &name,
                    &any(codec::LISTENER),
                    |a| codec::decode_listener(a),
                    |l| match l {
                        AnyListener::Outbound(listener) => codec::encode_listener(listener),
                        AnyListener::Inbound(listener) => codec::encode_inbound(listener),
                    },
                ),
                other => panic!("{other:?} is no kind of resource"),
            }
            seen += 1;
        }
        assert_eq!(seen, wanted, "{recording}");
    }
}
