//! How many digits of a price in minor units stand behind the point: ISO 4217's answer, never a browser's, since browsers follow
//! local custom and differ from one another.

/// The list, as its maintenance agency (SIX) published it on 2026-01-01: currency codes by their number of minor digits. Codes
/// without minor units (gold, test codes) are left out: nothing has a price in them.
const LISTS: [(u8, &str); 4] = [
    (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
    (
        2,
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF \
         CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD \
         GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL \
         MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR \
         PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP \
         TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG",
    ),
    (3, "BHD IQD JOD KWD LYD OMR TND"),
    (4, "CLF UYW"),
];

/// The digits of a currency's minor units; `None` where ISO 4217 knows no such currency, or none that has a price.
#[must_use]
pub fn currency_digits(currency: &str) -> Option<u8> {
    let listed = |list: &str| list.split(' ').any(|code| code == currency);
    LISTS.iter().find(|(_, list)| listed(list)).map(|(digits, _)| *digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_the_standards_own() {
        for (currency, digits) in [
            ("CNY", Some(2)),
            ("JPY", Some(0)),
            ("HUF", Some(2)),
            ("IDR", Some(2)),
            ("IQD", Some(3)),
            ("KWD", Some(3)),
            ("CLF", Some(4)),
            ("ZWG", Some(2)),
            ("XAU", None),
            ("XXX", None),
            ("", None),
            ("cny", None),
            ("CNY JPY", None),
            ("NY ", None),
        ] {
            assert_eq!(currency_digits(currency), digits, "{currency:?}");
        }
    }

    #[test]
    fn no_code_stands_twice() {
        let mut codes: Vec<_> = LISTS.iter().flat_map(|(_, list)| list.split(' ')).collect();
        assert!(codes.iter().all(|code| code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase())));
        let all = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!((codes.len(), all), (165, 165));
    }
}
