{#- Intervals of confidence, 95 % unless `z` says otherwise (1.96: two-sided 95 % of the normal distribution). -#}

{#- Wilson's score interval of a share (E. B. Wilson, JASA 22, 1927; recommended for small counts by Brown, Cai and
    DasGupta, Statistical Science 16, 2001). Null without any. -#}
{%- macro wilson_lower(hits, total, z=1.959964) -%} {{ _wilson(hits, total, z, '-') }} {%- endmacro -%}
{%- macro wilson_upper(hits, total, z=1.959964) -%} {{ _wilson(hits, total, z, '+') }} {%- endmacro -%}

{%- macro _wilson(hits, total, z, sign) -%}
  (case when ({{ total }}) > 0 then greatest(0.0, least(1.0,
    (({{ hits }})::double precision / ({{ total }}) + {{ z * z }} / (2.0 * ({{ total }}))
      {{ sign }} {{ z }} * sqrt(
        ({{ hits }})::double precision / ({{ total }}) * (1 - ({{ hits }})::double precision / ({{ total }})) / ({{ total }})
        + {{ z * z }} / (4.0 * ({{ total }}) * ({{ total }}))))
    / (1 + {{ z * z }} / ({{ total }})))) end)
{%- endmacro -%}

{#- Byar's interval of a Poisson count (N. E. Breslow and N. E. Day, Statistical Methods in Cancer Research II, IARC 1987,
    page 69): the exact gamma interval (Garwood 1936) by Wilson and Hilferty's approximation of chi-square, which needs
    no table. Divide by the exposure for the interval of a rate. -#}
{%- macro poisson_lower(count, z=1.959964) -%}
  (case when ({{ count }}) > 0 then ({{ count }}) * greatest(0.0,
    1 - 1 / (9.0 * ({{ count }})) - {{ z }} / (3 * sqrt(({{ count }})::double precision))) ^ 3 else 0.0 end)
{%- endmacro -%}
{%- macro poisson_upper(count, z=1.959964) -%}
  ((({{ count }}) + 1) * (1 - 1 / (9.0 * (({{ count }}) + 1)) + {{ z }} / (3 * sqrt((({{ count }}) + 1)::double precision))) ^ 3)
{%- endmacro -%}
